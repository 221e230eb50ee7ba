-- What batch $2 of sink $1 retried and did not set aside again has arrived.
update pillarbox.dead_letter
set state = 'delivered', decided_at = pg_catalog.clock_timestamp()
where sink = $1 and retry_number = $2 and state = 'retrying'
