-- Each sink that was not retired. $1: class of the locks of relays.
select
    s.sink,
    s.name,
    s.fingerprint,
    s.paused,
    s.stopped_reason,
    extract(epoch from pg_catalog.clock_timestamp() - s.stopped_at)::double precision as stopped_s,
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
    ) as is_active,
    coalesce((
        select p.timeline <> pillarbox.timeline()
        from pillarbox.sink_position p
        where p.sink = s.sink
    ), false) as has_new_timeline,
    open.batches as open_batches,
    open.age_s as oldest_batch_s,
    extract(epoch from pg_catalog.clock_timestamp() - pillarbox.oldest_undone(
        safe.from_snapshot, safe.to_snapshot, safe.until_tx, safe.until_id
    ))::double precision as lag_s
from pillarbox.sink s
cross join lateral pillarbox.safe_position(s.sink, pg_catalog.clock_timestamp(), 0) safe
cross join lateral (
    select
        pg_catalog.count(*) as batches,
        extract(epoch from pg_catalog.clock_timestamp() - pg_catalog.min(o.sealed_at))
            ::double precision as age_s
    from pillarbox.open_batch o
    where o.sink = s.sink and o.number >= safe.number
) open
where s.retired_at is null
order by s.name
