-- Chunks that were renamed when Redis knew $2 as the last one, but for $3.
select c.chunk
from pillarbox.intake_chunk c
where c.intake = $1 and c.previous = $2 and c.chunk <> $3
order by c.number desc
limit 100
