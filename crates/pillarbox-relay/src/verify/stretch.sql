-- Batches of sink $1 after number $2 with an outcome, with what the sink should hold of them.
-- $3: sealed from then on; $4: this one only; $5: at most so many.
select
    b.number, b.origin, b.blocks::text, d.blocks, d.outcome,
    array(
        -- Of repairs that have arrived, dead letters or not.
        select coalesce(r.selection ->> 'only', block.value ->> 'partition')
        from pillarbox.batch r
        join pillarbox.delivery arrived on arrived.sink = r.sink and arrived.number = r.number
        cross join lateral pg_catalog.jsonb_array_elements(r.blocks) block
        where r.sink = b.sink
            and r.kind = 'repair'
            and r.parent = b.number
            and arrived.outcome <> 'recovered'
            and not exists (
                select
                from pillarbox.batch child
                left join pillarbox.delivery of_it
                    on of_it.sink = child.sink and of_it.number = child.number
                where child.sink = r.sink
                    and child.root = r.number
                    and coalesce(of_it.outcome, 'recovered') = 'recovered'
            )
    ) as repaired,
    b.terms::text
from pillarbox.batch b
-- The second bound keeps a merge join from reading every outcome before the stretch.
join pillarbox.delivery d on d.sink = b.sink and d.number = b.number and d.number > $2
where b.sink = $1
    and b.number > $2
    and b.kind <> 'genesis'
    and d.outcome <> 'recovered'
    and ($3::timestamptz is null or b.sealed_at >= $3)
    and ($4::bigint is null or b.number = $4)
order by b.number
limit $5
