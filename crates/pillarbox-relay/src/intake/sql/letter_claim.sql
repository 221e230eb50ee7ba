select l.format, l.bytes
from pillarbox.intake_letter l
where l.dead_letter = $1 and l.state = 'dead'
for update
