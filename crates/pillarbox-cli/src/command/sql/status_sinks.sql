-- Where each sink stands that was not retired. $1, $2: sinks and the numbers up to which they are
-- known to be safe. $3: waiting events are counted up to this many. $4: class of the locks of relays.
select
    s.sink,
    s.name,
    s.fingerprint,
    s.paused,
    s.stopped_reason,
    extract(epoch from pg_catalog.clock_timestamp() - s.stopped_at)::double precision as stopped_s,
    safe.number as safe_number,
    extract(epoch from pg_catalog.clock_timestamp() - pillarbox.oldest_undone(
        safe.from_snapshot, safe.to_snapshot, safe.until_tx, safe.until_id
    ))::double precision as lag_s,
    (
        select pg_catalog.count(*)
        from (
            select
            from pillarbox.undone(
                safe.from_snapshot, safe.to_snapshot, safe.until_tx, safe.until_id
            )
            limit $3
        ) u
    ) as waiting,
    open.batches as open_batches,
    open.rows as open_rows,
    sealed.number as sealed_number,
    last.number as last_number,
    last.rows as last_rows,
    last.server as last_server,
    extract(epoch from pg_catalog.clock_timestamp() - last.delivered_at)::double precision as last_s,
    exists (
        select
        from pg_catalog.pg_locks l
        where l.locktype = 'advisory'
            and l.database = (
                select d.oid from pg_catalog.pg_database d
                where d.datname = pg_catalog.current_database()
            )
            and l.classid = $4::integer::oid
            and l.objid = s.sink::oid
            and l.objsubid = 2
            and l.granted
    ) as relay_active
from pillarbox.sink s
left join rows from (
    pg_catalog.unnest($1::integer[]), pg_catalog.unnest($2::bigint[])
) as known (sink, number)
    on known.sink = s.sink
cross join lateral pillarbox.safe_position(
    s.sink, pg_catalog.clock_timestamp(), coalesce(known.number, 0)
) safe
cross join lateral (
    select pg_catalog.count(*) as batches, coalesce(pg_catalog.sum(o.rows), 0)::bigint as rows
    from pillarbox.open_batch o
    where o.sink = s.sink and o.number >= safe.number
) open
left join lateral (
    select b.number from pillarbox.batch b where b.sink = s.sink order by b.number desc limit 1
) sealed on true
left join lateral (
    select * from pillarbox.delivery d where d.sink = s.sink order by d.number desc limit 1
) last on true
where s.retired_at is null
order by s.name
