-- Dead letters of sink $1 that were being retried: those that the sink holds ($2) have arrived, the
-- others are dead as before.
update pillarbox.dead_letter l
set state = case when l.event_id = any ($2::uuid[]) then 'delivered' else 'dead' end,
    retry_number = case when l.event_id = any ($2::uuid[]) then l.retry_number end
where l.sink = $1 and l.state = 'retrying'
