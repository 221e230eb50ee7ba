insert into pillarbox.intake_letter_piece (dead_letter, piece, entry)
values ($1, $2, $3)
