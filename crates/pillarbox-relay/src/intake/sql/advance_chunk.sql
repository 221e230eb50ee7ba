-- $3: entries of the chunk that were taken before, $4: those that are now.
update pillarbox.intake_chunk
set taken = $4, is_done = $5, taken_at = pg_catalog.clock_timestamp()
where intake = $1 and chunk = $2 and taken = $3 and not is_done
