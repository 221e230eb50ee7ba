select
    s.origin, p.number, p.from_snapshot::text, p.to_snapshot::text, p.until_tx::text, p.until_id,
    p.timeline <> pillarbox.timeline(),
    last.number, last.sealed_at
from pillarbox.sink s
join pillarbox.sink_position p on p.sink = s.sink
cross join lateral (
    select b.number, b.sealed_at
    from pillarbox.batch b
    where b.sink = s.sink
    order by b.number desc
    limit 1
) last
where s.sink = $1
