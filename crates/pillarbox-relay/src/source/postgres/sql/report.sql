update pillarbox.sink
set stopped_reason = $2::text,
    stopped_at = case when $2::text is null then null else pg_catalog.clock_timestamp() end
where sink = $1 and stopped_reason is distinct from $2::text
