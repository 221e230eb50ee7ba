-- What sink $1 was to be delivered again lies in a part of the outbox that is gone.
update pillarbox.replay r
set refused = 'the outbox was recovered', answered_at = pg_catalog.clock_timestamp()
where r.sink = $1 and r.answered_at is null
