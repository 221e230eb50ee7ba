-- Bytes of the outbox on disk; bytes sealed for the busiest sink within the last hour.
select
    pg_catalog.pg_total_relation_size('pillarbox.event_0')
        + pg_catalog.pg_total_relation_size('pillarbox.event_1')
        + pg_catalog.pg_total_relation_size('pillarbox.event_2')
        + pg_catalog.pg_total_relation_size('pillarbox.event_3'),
    coalesce(pg_catalog.max(sealed.bytes), 0)::bigint
from (
    select pg_catalog.sum(b.bytes) as bytes
    from pillarbox.batch b
    where b.sealed_at > pg_catalog.clock_timestamp() - interval '1 hour'
    group by b.sink
) sealed
