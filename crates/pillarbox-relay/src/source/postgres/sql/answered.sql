update pillarbox.replay
set number = $2, refused = $3, answered_at = pg_catalog.clock_timestamp()
where replay = $1 and answered_at is null
