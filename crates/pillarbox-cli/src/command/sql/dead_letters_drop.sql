update pillarbox.dead_letter
set state = 'dropped', decided_at = pg_catalog.clock_timestamp(), decided_by = session_user,
    decided_reason = $4
where sink = $1 and state in ('dead', 'requested') and ($2 or dead_letter = any ($3))
