-- One statement, one snapshot: what it sees beyond $1 is what lies between $1 and that snapshot.
-- It looks into the gaps between the transactions that are running, because what these have written
-- so far would have to be skipped row by row. An event from the future shows a clock that was set
-- back; it must not wait for that time. The trace context is that of one of the first events.
with now as materialized (
    select
        pg_catalog.pg_current_snapshot() as snapshot,
        array(
            select running.tx
            from pg_catalog.pg_snapshot_xip(pg_catalog.pg_current_snapshot()) as running (tx)
        ) as running
), oldest as materialized (
    select
        pg_catalog.min(first.published_at) as published_at,
        pg_catalog.min(first.trace_parent) as trace_parent
    from now
    cross join lateral rows from (
        pg_catalog.unnest(pg_catalog.array_prepend('0'::xid8, now.running)),
        pg_catalog.unnest(
            pg_catalog.array_append(now.running, pg_catalog.pg_snapshot_xmax(now.snapshot))
        )
    ) as gap (after, before)
    cross join lateral (
        select e.published_at, e.trace_parent
        from pillarbox.event e
        where e.tx >= pg_catalog.pg_snapshot_xmax($1::text::pg_snapshot)
            and e.tx > gap.after
            and e.tx < gap.before
        order by e.tx, e.id
        limit 1
    ) first
    where gap.before > pg_catalog.pg_snapshot_xmax($1::text::pg_snapshot)
), late as materialized (
    select e.published_at, e.trace_parent
    from now
    cross join lateral pg_catalog.pg_snapshot_xip($1::text::pg_snapshot) as finished (tx)
    join pillarbox.event e on e.tx = finished.tx
    where pg_catalog.pg_visible_in_snapshot(finished.tx, now.snapshot)
    limit 1
)
select
    now.snapshot::text,
    (pg_catalog.abs(extract(epoch from pg_catalog.clock_timestamp() - least(
        (select oldest.published_at from oldest),
        (select late.published_at from late)
    ))) * 1000000)::bigint,
    pg_catalog.pg_table_size('pillarbox.event_0') + pg_catalog.pg_table_size('pillarbox.event_1')
        + pg_catalog.pg_table_size('pillarbox.event_2')
        + pg_catalog.pg_table_size('pillarbox.event_3'),
    coalesce(
        (select late.trace_parent from late),
        (select oldest.trace_parent from oldest)
    )
from now
