select
    a.pid,
    extract(epoch from pg_catalog.clock_timestamp() - a.backend_start)::double precision
from pg_catalog.pg_stat_activity a
where a.pid = pg_catalog.pg_backend_pid()
