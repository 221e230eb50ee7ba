-- Who holds the sink's lock, and for how many seconds it has not run a statement.
select
    a.application_name,
    extract(epoch from pg_catalog.clock_timestamp() - a.state_change)::double precision
from pg_catalog.pg_locks l
join pg_catalog.pg_stat_activity a on a.pid = l.pid
where l.locktype = 'advisory'
    and l.database = (
        select d.oid from pg_catalog.pg_database d
        where d.datname = pg_catalog.current_database()
    )
    and l.classid = $1::integer::oid
    and l.objid = $2::integer::oid
    and l.objsubid = 2
    and l.granted
