-- One statement, one snapshot: what it sees beyond $1 is what lies between $1 and that snapshot.
-- An event from the future shows a clock that was set back; it must not wait for that time.
select
    pg_catalog.pg_current_snapshot()::text,
    (pg_catalog.abs(extract(epoch from pg_catalog.clock_timestamp() - least(
        (
            select e.published_at
            from pillarbox.event e
            where e.tx >= pg_catalog.pg_snapshot_xmax($1::text::pg_snapshot)
            order by e.tx, e.id
            limit 1
        ),
        (
            select e.published_at
            from pg_catalog.pg_snapshot_xip($1::text::pg_snapshot) as running (tx)
            join pillarbox.event e on e.tx = running.tx
            limit 1
        )
    ))) * 1000000)::bigint,
    pg_catalog.pg_table_size('pillarbox.event_0') + pg_catalog.pg_table_size('pillarbox.event_1')
        + pg_catalog.pg_table_size('pillarbox.event_2')
        + pg_catalog.pg_table_size('pillarbox.event_3')
