-- $1: the intake, null for all; $2: also those that are settled; $3: at most so many.
select
    l.dead_letter, l.state, i.name, l.place, l.format, l.bytes, l.code, l.reason, l.event_id,
    pg_catalog.to_char(l.dead_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') as dead_at
from pillarbox.intake_letter l
join pillarbox.intake i on i.intake = l.intake
where ($1::text is null or i.name = $1) and ($2 or l.state = 'dead')
order by l.dead_letter desc
limit $3
