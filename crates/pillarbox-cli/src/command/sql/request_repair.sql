-- Asks for what sink $1 lacks of batch $2 in partition $3, unless that is on its way. A repair that was lost in
-- its turn is one more repair of the same batch.
insert into pillarbox.replay (sink, kind, parent, only_partition)
select b.sink, 'repair', lost.number, $3
from pillarbox.batch b
cross join lateral (
    select case b.kind when 'repair' then b.parent else b.number end as number
) lost
where b.sink = $1
    and b.number = $2
    and not exists (
        select from pillarbox.replay r
        where r.sink = b.sink and r.kind = 'repair' and r.parent = lost.number
            and r.only_partition = $3
            and (
                r.answered_at is null
                or exists (
                    select from pillarbox.open_batch o
                    where o.sink = r.sink and r.number in (o.number, o.root)
                )
            )
    )
