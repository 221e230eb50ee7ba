update pillarbox.intake_letter
set state = 'published', event_id = $2, decided_at = pg_catalog.clock_timestamp(),
    decided_by = session_user
where dead_letter = $1
