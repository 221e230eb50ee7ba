-- Who needs leaf {slot}, or reads or writes it: kind, who, batch, pid, age in seconds, and for a sink
-- whether it is paused and has a relay. $1: class of the locks of relays.
with sink as (
    select
        s.*,
        exists (
            select
            from pg_catalog.pg_locks l
            where l.locktype = 'advisory'
                and l.database = (
                    select d.oid from pg_catalog.pg_database d
                    where d.datname = pg_catalog.current_database()
                )
                and l.classid = $1::integer::oid
                and l.objid = s.sink::oid
                and l.objsubid = 2
                and l.granted
        ) as is_active
    from pillarbox.sink s
    where s.retired_at is null
)
select
    'sink' as kind, sink.name, p.number, null::integer as pid,
    extract(epoch from pg_catalog.clock_timestamp() - oldest.published_at)::double precision,
    sink.paused, sink.is_active
from sink
cross join lateral pillarbox.safe_position(sink.sink, pg_catalog.clock_timestamp(), 0) p
cross join lateral (
    select u.published_at
    from pillarbox.undone(p.from_snapshot, p.to_snapshot, p.until_tx, p.until_id) u
    where u.slot = {slot}
    limit 1
) oldest
union all
select
    'batch', sink.name, o.number, null,
    extract(epoch from pg_catalog.clock_timestamp() - o.sealed_at)::double precision,
    sink.paused, sink.is_active
from sink
join pillarbox.open_batch o on o.sink = sink.sink
where exists (
    select
    from pillarbox.undone(o.from_snapshot, o.from_snapshot, null, null) u
    where u.slot = {slot}
)
union all
select
    'session',
    coalesce(a.usename, '?') || ' as ' || coalesce(nullif(a.application_name, ''), '?'),
    null, l.pid,
    pg_catalog.max(
        extract(epoch from pg_catalog.clock_timestamp() - a.xact_start)::double precision
    ),
    false, false
from pg_catalog.pg_locks l
join pg_catalog.pg_stat_activity a on a.pid = l.pid
where l.locktype = 'relation'
    and l.relation = 'pillarbox.event_{slot}'::regclass
    and l.database = (
        select d.oid from pg_catalog.pg_database d
        where d.datname = pg_catalog.current_database()
    )
    and l.granted
    and l.pid <> pg_catalog.pg_backend_pid()
group by l.pid, a.usename, a.application_name
