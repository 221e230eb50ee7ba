-- What the judgement is made from, for this session only. One bit per sink says who needs an event.
create temporary table recover_sink (
    place smallint primary key,
    sink integer not null,
    -- Whether its snapshots can be compared with the transaction ids of every event.
    is_continuous boolean not null,
    number bigint,
    from_snapshot pg_snapshot,
    to_snapshot pg_snapshot,
    until_tx xid8,
    until_id bigint
);
-- Transactions that copied events in: one that publishes gives all its events one tx, its own, which
-- this cluster has given out. Found once, by one snapshot: what is published later is none of them.
create temporary table recover_copier as
    select e.xmin::text as writer
    from pillarbox.event e
    cross join (
        select pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot()) as tx
    ) next
    group by e.xmin::text
    having pg_catalog.count(distinct e.tx) > 1 or pg_catalog.bool_or(e.tx >= next.tx);
create temporary table recover_next as
    select pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot()) as tx;
create temporary table recover_judged (
    tx xid8,
    id bigint,
    needed bigint not null,
    primary key (tx, id)
);
create temporary table recover_group (needed bigint primary key, tx xid8 not null);
-- Which sinks need an event as far as their ledgers know. A copied event has the transaction id of the
-- database that it came from, as the ledger that came with it has; any other has one of this cluster.
create temporary view recover_event as
    select
        e.*,
        copied.is_copied as pillarbox_is_copied,
        (
            select coalesce(pg_catalog.bit_or(1::bigint << s.place), 0)
            from recover_sink s
            where not coalesce(
                    (s.is_continuous or copied.is_copied) and pillarbox.is_done(
                        e.tx, e.id, s.from_snapshot, s.to_snapshot, s.until_tx, s.until_id
                    ),
                    false
                )
                and not exists (
                    select
                    from pillarbox.dead_letter l
                    where l.sink = s.sink and l.tx = e.tx and l.id = e.id and l.event_id = e.event_id
                )
        ) as pillarbox_needed
    from pillarbox.event e
    cross join lateral (
        select e.xmin::text in (select c.writer from recover_copier c) as is_copied
    ) copied
