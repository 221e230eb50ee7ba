-- $1: the intake, null for all; $2: the letters, null for all.
update pillarbox.intake_letter l
set state = 'dropped', decided_at = pg_catalog.clock_timestamp(), decided_by = session_user,
    decided_reason = $3
from pillarbox.intake i
where i.intake = l.intake
    and ($1::text is null or i.name = $1)
    and l.state = 'dead'
    and ($2::bigint[] is null or l.dead_letter = any ($2))
returning l.dead_letter
