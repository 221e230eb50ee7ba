-- The dead letters of sink $1 that batch $2 retries.
update pillarbox.dead_letter l
set state = 'retrying', retry_number = $2
from rows from (pg_catalog.unnest($3::text[]), pg_catalog.unnest($4::bigint[])) as given (tx, id)
where l.sink = $1 and l.tx = given.tx::xid8 and l.id = given.id and l.state = 'requested'
