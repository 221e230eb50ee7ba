-- Where each sink stands. `is_done` is the one predicate; `undone` lists by index what it denies.

-- Whether an event is sealed at the position (from, to, until).
create function pillarbox.is_done(
    tx xid8, id bigint,
    from_snapshot pg_snapshot, to_snapshot pg_snapshot, until_tx xid8, until_id bigint
) returns boolean
    language sql immutable parallel safe
    return pg_catalog.pg_visible_in_snapshot(tx, from_snapshot)
        or (
            pg_catalog.pg_visible_in_snapshot(tx, to_snapshot)
            and (until_tx is null or (tx, id) <= (until_tx, until_id))
        );

-- The visible events that are not done at the position: those that `to` does not see and, where the
-- window is cut, the rest of it. Within a leaf the oldest come first. Never scans from xmin: an old
-- transaction would make that long. Without statistics the planner must be kept from hash joins and
-- sequential scans; every session of ours is.
create function pillarbox.undone(
    from_snapshot pg_snapshot, to_snapshot pg_snapshot, until_tx xid8, until_id bigint
) returns table (slot smallint, tx xid8, id bigint, published_at timestamptz)
    language sql stable
begin atomic
    select e.slot, e.tx, e.id, e.published_at from pillarbox.event e
    where e.tx = until_tx and e.id > until_id
    union all
    select e.slot, e.tx, e.id, e.published_at
    from pg_catalog.pg_snapshot_xip(from_snapshot) as finished (tx)
    join pillarbox.event e on e.tx = finished.tx
    where finished.tx > until_tx
        and pg_catalog.pg_visible_in_snapshot(finished.tx, to_snapshot)
    union all
    select e.slot, e.tx, e.id, e.published_at from pillarbox.event e
    where e.tx > until_tx
        and e.tx >= pg_catalog.pg_snapshot_xmax(from_snapshot)
        and e.tx < pg_catalog.pg_snapshot_xmax(to_snapshot)
        and pg_catalog.pg_visible_in_snapshot(e.tx, to_snapshot)
    union all
    select e.slot, e.tx, e.id, e.published_at
    from pg_catalog.pg_snapshot_xip(to_snapshot) as running (tx)
    join pillarbox.event e on e.tx = running.tx
    union all
    select e.slot, e.tx, e.id, e.published_at from pillarbox.event e
    where e.tx >= pg_catalog.pg_snapshot_xmax(to_snapshot);
end;

-- Batches without an outcome.
create view pillarbox.open_batch as
    select b.*
    from pillarbox.batch b
    where b.kind <> 'genesis'
        and not exists (
            select from pillarbox.delivery d where d.sink = b.sink and d.number = b.number
        );

-- A sink's position: its last genesis or window batch.
create view pillarbox.sink_position as
    select s.sink, b.number, b.from_snapshot, b.to_snapshot, b.until_tx, b.until_id, b.timeline
    from pillarbox.sink s
    cross join lateral (
        select * from pillarbox.batch b
        where b.sink = s.sink and b.kind in ('genesis', 'window')
        order by b.number desc
        limit 1
    ) b;

-- A sink's safe position: its last genesis or window batch such that it and all before it had an
-- outcome by `as_of`. Everything up to `known_safe` is taken for safe without a look.
create function pillarbox.safe_position(sink integer, as_of timestamptz, known_safe bigint)
    returns table (
        number bigint, from_snapshot pg_snapshot, to_snapshot pg_snapshot, until_tx xid8,
        until_id bigint
    )
    language sql stable
begin atomic
    select b.number, b.from_snapshot, b.to_snapshot, b.until_tx, b.until_id
    from pillarbox.batch b
    where b.sink = safe_position.sink
        and b.kind in ('genesis', 'window')
        and b.number < coalesce(
            (
                select o.number
                from pillarbox.batch o
                left join pillarbox.delivery d on d.sink = o.sink and d.number = o.number
                where o.sink = safe_position.sink
                    and o.number > safe_position.known_safe
                    and o.kind <> 'genesis'
                    and (d.number is null or d.delivered_at > safe_position.as_of)
                order by o.number
                limit 1
            ),
            1099511627776
        )
    order by b.number desc
    limit 1;
end;

-- When the oldest event that is not done at the position was published; null when there is none.
create function pillarbox.oldest_undone(
    from_snapshot pg_snapshot, to_snapshot pg_snapshot, until_tx xid8, until_id bigint
) returns timestamptz
    language sql stable
    set enable_seqscan = off set enable_bitmapscan = off
    set enable_hashjoin = off set enable_mergejoin = off
begin atomic
    select pg_catalog.min(oldest.published_at)
    from pg_catalog.generate_series(0, 3) as leaf (slot)
    cross join lateral (
        select u.published_at
        from pillarbox.undone(from_snapshot, to_snapshot, until_tx, until_id) u
        where u.slot = leaf.slot
        limit 1
    ) oldest;
end;
