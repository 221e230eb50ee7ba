-- Batches of sink $1 after number $2 with an outcome, with what the sink should hold of them.
-- $3: sealed from then on; $4: this one only; $5: at most so many.
select
    b.number, b.origin, b.blocks::text, d.blocks, d.outcome,
    array(
        select coalesce(r.selection ->> 'only', block.value ->> 'partition')
        from pillarbox.batch r, pg_catalog.jsonb_array_elements(r.blocks) block
        where r.sink = b.sink and r.kind = 'repair' and r.parent = b.number
    ) as repaired,
    b.terms::text
from pillarbox.batch b
join pillarbox.delivery d on d.sink = b.sink and d.number = b.number
where b.sink = $1
    and b.number > $2
    and b.kind <> 'genesis'
    and d.outcome <> 'recovered'
    and ($3::timestamptz is null or b.sealed_at >= $3)
    and ($4::bigint is null or b.number = $4)
order by b.number
limit $5
