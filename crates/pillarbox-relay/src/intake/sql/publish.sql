select pg_catalog.count(*)
from pillarbox.publish_batch(
    event_types => $1::text[],
    event_contexts => $2::text[]::json[],
    event_date_times => $3::timestamptz[],
    environments => $4::text[],
    metadata_versions => $5::bigint[],
    event_ids => $6::uuid[],
    trace_parents => $7::text[]
)
