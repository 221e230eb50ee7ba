-- The safe position of each registered sink as of now - retention. $1, $2: sinks and the numbers up
-- to which they are known to be safe.
select s.sink, p.number
from pillarbox.sink s
left join unnest($1::integer[], $2::bigint[]) as known (sink, number)
    on known.sink = s.sink
cross join pillarbox.settings settings
cross join lateral pillarbox.safe_position(
    s.sink, pg_catalog.clock_timestamp() - settings.retention, coalesce(known.number, 0)
) p
where s.retired_at is null
