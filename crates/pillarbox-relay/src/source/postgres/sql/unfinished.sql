select
    o.number, o.batch_id, o.origin, o.kind, o.from_snapshot::text, o.to_snapshot::text,
    o.after_tx::text, o.after_id, o.until_tx::text, o.until_id, o.rows, o.bytes, o.digest,
    o.blocks::text, o.sealed_at, o.parent, o.root, o.selection::text, o.terms::text,
    (extract(epoch from pg_catalog.clock_timestamp() - o.sealed_at) * 1000000)::bigint,
    (
        select coalesce(pg_catalog.sum(pg_catalog.jsonb_array_length(later.blocks)), 0)::bigint
        from pillarbox.batch later
        where later.sink = o.sink and later.number > o.number
    ),
    coalesce(root.rows, o.rows)
from pillarbox.open_batch o
left join pillarbox.batch root on root.sink = o.sink and root.number = o.root
where o.sink = $1
order by o.number
