-- Partitions of the outbox that are no leaves of the ring; whether tx is guarded, and whether
-- what an event must be is one check.
select
    (
        select pg_catalog.string_agg(i.inhrelid::regclass::text, ', ')
        from pg_catalog.pg_inherits i
        join pg_catalog.pg_class c on c.oid = i.inhrelid
        where i.inhparent = 'pillarbox.event'::regclass
            and not (
                c.relnamespace = 'pillarbox'::regnamespace
                and c.relname in ('event_0', 'event_1', 'event_2', 'event_3')
            )
    ),
    exists (
        select
        from pg_catalog.pg_constraint k
        where k.conrelid = 'pillarbox.event'::regclass and k.conname = 'tx_is_of_this_transaction'
    ),
    exists (
        select
        from pg_catalog.pg_constraint k
        where k.conrelid = 'pillarbox.event'::regclass and k.conname = 'event_is_checked'
    )
