-- Who holds the sink's lock, and for how many seconds it has not run a statement. Another user's
-- session shows that only to members of that user, and may be ended only by them.
select
    a.application_name,
    extract(epoch from pg_catalog.clock_timestamp() - a.state_change)::double precision,
    a.usename::text,
    a.pid,
    pg_catalog.host(a.client_addr),
    coalesce(
        (
            pg_catalog.pg_has_role(current_user, a.usesysid, 'usage')
            or pg_catalog.pg_has_role(current_user, 'pg_signal_backend', 'usage')
        ) and not (
            select holder.rolsuper and not me.rolsuper
            from pg_catalog.pg_roles holder, pg_catalog.pg_roles me
            where holder.oid = a.usesysid and me.rolname = current_user
        ),
        false
    ),
    a.state_change
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
