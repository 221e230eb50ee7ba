-- Each leaf, whether the ring stands on it, its size and the age of its oldest event in seconds.
select
    leaf.slot::smallint,
    leaf.slot = pillarbox.ring_slot(),
    pg_catalog.pg_table_size(leaf.relation),
    pg_catalog.pg_relation_size(leaf.relation) = 0,
    -- An empty leaf still takes the space of its TOAST index.
    pg_catalog.pg_relation_size(leaf.relation) > 0 and (coalesce(pg_catalog.clock_timestamp() - (
        select e.published_at from pillarbox.event e where e.slot = leaf.slot
        order by e.tx, e.id limit 1
    ) > s.leaf_age_max, false)
        or pg_catalog.pg_table_size(leaf.relation) >= s.leaf_bytes_max)
from (values
    (0, 'pillarbox.event_0'::regclass), (1, 'pillarbox.event_1'),
    (2, 'pillarbox.event_2'), (3, 'pillarbox.event_3')
) as leaf (slot, relation)
cross join pillarbox.settings s
order by leaf.slot
