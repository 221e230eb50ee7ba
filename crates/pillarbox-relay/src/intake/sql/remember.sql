insert into pillarbox.intake_memory (intake, chunk, low, high, hashes)
values ($1, $2::uuid, $3, $4, $5)
