-- Every sink that was not retired, with its lock and its safe position. $1: class of the locks.
select
    s.sink,
    s.name,
    s.fingerprint,
    pg_catalog.pg_try_advisory_lock($1, s.sink)
from pillarbox.sink s
where s.retired_at is null
order by s.sink
