-- Bytes of the ring and of the queue, with their indexes; and whether the ring has given back what it can:
-- only the leaf that it stands on holds rows, and not as many that it would turn.
select
    sum(pg_catalog.pg_total_relation_size(leaf.relation))::bigint,
    pg_catalog.pg_total_relation_size('public.queue'),
    bool_and(case
        when leaf.slot = pillarbox.ring_slot()
            then pg_catalog.pg_table_size(leaf.relation) < s.leaf_bytes_max
        else pg_catalog.pg_relation_size(leaf.relation) = 0
    end)
from (values
    (0, 'pillarbox.event_0'::regclass), (1, 'pillarbox.event_1'),
    (2, 'pillarbox.event_2'), (3, 'pillarbox.event_3')
) as leaf (slot, relation)
cross join pillarbox.settings s
