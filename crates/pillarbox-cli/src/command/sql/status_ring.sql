-- Each leaf of the ring: whether the ring stands on it, its bytes, the age of its oldest event. Leaf
-- by leaf, with constants, so that no leaf but its own is locked.
select
    leaf.slot::integer,
    leaf.slot = (select p.last_value from pillarbox.ring_position p) as current,
    leaf.bytes,
    extract(epoch from pg_catalog.clock_timestamp() - leaf.oldest)::double precision as oldest_s
from (
    select 0 as slot, pg_catalog.pg_total_relation_size('pillarbox.event_0') as bytes,
        (select e.published_at from pillarbox.event e where e.slot = 0 order by e.tx, e.id limit 1)
            as oldest
    union all
    select 1, pg_catalog.pg_total_relation_size('pillarbox.event_1'),
        (select e.published_at from pillarbox.event e where e.slot = 1 order by e.tx, e.id limit 1)
    union all
    select 2, pg_catalog.pg_total_relation_size('pillarbox.event_2'),
        (select e.published_at from pillarbox.event e where e.slot = 2 order by e.tx, e.id limit 1)
    union all
    select 3, pg_catalog.pg_total_relation_size('pillarbox.event_3'),
        (select e.published_at from pillarbox.event e where e.slot = 3 order by e.tx, e.id limit 1)
) leaf
order by leaf.slot
