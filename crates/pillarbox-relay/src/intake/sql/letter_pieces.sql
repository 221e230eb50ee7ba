select p.entry
from pillarbox.intake_letter_piece p
where p.dead_letter = $1
order by p.piece
