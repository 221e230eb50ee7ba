select s.name, pg_catalog.count(*)
from pillarbox.dead_letter l
join pillarbox.sink s on s.sink = l.sink
where l.state = 'dead' and s.retired_at is null
group by s.name
order by s.name
