select c.chunk
from pillarbox.intake_chunk c
where c.intake = $1 and c.previous is not null
order by c.chunk desc
limit 1
