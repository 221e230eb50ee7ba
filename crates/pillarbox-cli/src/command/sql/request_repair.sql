-- Asks for what sink $1 lacks of batch $2 in partition $3, unless that is on its way, or has arrived since one
-- began to look ($4).
insert into pillarbox.replay (sink, kind, parent, only_partition)
select $1, 'repair', $2, $3
where not exists (
    select
    from pillarbox.replay r
    where r.sink = $1 and r.kind = 'repair' and r.parent = $2 and r.only_partition = $3
        and (
            r.answered_at is null
            or exists (
                select
                from (
                    select b.number from pillarbox.batch b
                    where b.sink = $1 and b.number = r.number
                    union all
                    select b.number from pillarbox.batch b
                    where b.sink = $1 and b.root = r.number
                ) family
                left join pillarbox.delivery d on d.sink = $1 and d.number = family.number
                where coalesce(d.delivered_at, 'infinity') >= $4
            )
        )
)
