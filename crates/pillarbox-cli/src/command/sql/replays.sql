select
    r.replay, r.kind, r.parent,
    case
        when r.refused is not null then 'refused'
        when r.number is null then 'requested'
        when d.number is null then 'in flight'
        else d.outcome
    end,
    r.number, r.refused
from pillarbox.replay r
left join pillarbox.delivery d on d.sink = r.sink and d.number = r.number
where r.sink = $1
order by r.replay desc
limit 1000
