select l.dead_letter
from pillarbox.intake_letter l
join pillarbox.intake i on i.intake = l.intake
where ($1::text is null or i.name = $1) and l.state = 'dead'
order by l.dead_letter
