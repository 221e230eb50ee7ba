insert into pillarbox.replay (sink, kind, parent, only_partition)
select $1, 'repair', $2, $3
where not exists (
    select from pillarbox.replay r
    where r.sink = $1 and r.kind = 'repair' and r.parent = $2 and r.only_partition = $3
        and r.answered_at is null
)
