insert into pillarbox.intake_chunk (intake, chunk, previous, restored, doubtful)
values ($1, $2, $3, $4, $5)
