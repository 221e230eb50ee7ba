select i.position, i.forgotten
from pillarbox.intake i
where i.intake = $1
