select c.restored, c.doubtful, c.taken, c.is_done, c.previous
from pillarbox.intake_chunk c
where c.intake = $1 and c.chunk = $2
