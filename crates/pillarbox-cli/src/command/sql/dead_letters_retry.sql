update pillarbox.dead_letter
set state = 'requested', decided_at = pg_catalog.clock_timestamp(), decided_by = session_user
where sink = $1 and state = 'dead' and ($2 or dead_letter = any ($3))
