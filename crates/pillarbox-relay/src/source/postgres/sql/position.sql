select
    s.origin, p.number, p.from_snapshot::text, p.to_snapshot::text, p.until_tx::text, p.until_id,
    p.timeline <> pillarbox.timeline(),
    (select pg_catalog.max(b.number) from pillarbox.batch b where b.sink = s.sink)
from pillarbox.sink s
join pillarbox.sink_position p on p.sink = s.sink
where s.sink = $1
