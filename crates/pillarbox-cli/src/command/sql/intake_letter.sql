select
    l.dead_letter, l.state, i.name, l.place, l.format, l.bytes, l.code, l.reason, l.event_id,
    pg_catalog.to_char(l.dead_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') as dead_at,
    l.decided_by, l.decided_reason
from pillarbox.intake_letter l
join pillarbox.intake i on i.intake = l.intake
where l.dead_letter = $1
