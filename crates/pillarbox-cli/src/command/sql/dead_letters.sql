-- $1: the sink; $2: also those that are settled; $3: at most so many.
select
    l.dead_letter, l.state, l.number, l.event_id, l.event_type,
    pg_catalog.to_char(l.event_date_time at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
        as event_date_time,
    pg_catalog.to_char(l.dead_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') as dead_at,
    l.code, l.column_name, l.reason
from pillarbox.dead_letter l
where l.sink = $1 and ($2 or l.state not in ('delivered', 'dropped'))
order by l.dead_letter desc
limit $3
