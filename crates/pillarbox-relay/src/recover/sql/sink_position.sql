insert into recover_sink
select $1, $2, $3, p.number, p.from_snapshot, p.to_snapshot, p.until_tx, p.until_id
from (select) one
left join pillarbox.safe_position($2, pg_catalog.clock_timestamp(), 0) p on true
