select pg_catalog.count(*)
from pillarbox.batch b
join pillarbox.delivery d on d.sink = b.sink and d.number = b.number
where b.sink = $1
    and b.kind <> 'genesis'
    and d.outcome <> 'recovered'
    and ($2::timestamptz is null or b.sealed_at >= $2)
    and ($3::bigint is null or b.number = $3)
