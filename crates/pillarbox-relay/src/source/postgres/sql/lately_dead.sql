select pg_catalog.count(*)
from pillarbox.dead_letter l
where l.sink = $1 and l.dead_at > pg_catalog.clock_timestamp() - interval '1 hour'
