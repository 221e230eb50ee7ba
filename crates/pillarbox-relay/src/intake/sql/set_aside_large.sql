insert into pillarbox.intake_letter (intake, place, format, bytes, reason)
values ($1, $2, $3, $4, $5)
returning dead_letter
