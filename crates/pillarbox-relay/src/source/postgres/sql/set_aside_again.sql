-- Dead letters of sink $1 that were retried in vain: dead since the first time.
update pillarbox.dead_letter l
set state = 'dead', retry_number = null, number = given.number, code = given.code,
    column_name = given.column_name, reason = given.reason
from rows from (
    pg_catalog.unnest($2::bigint[]), pg_catalog.unnest($3::text[]), pg_catalog.unnest($4::bigint[]),
    pg_catalog.unnest($5::integer[]), pg_catalog.unnest($6::text[]), pg_catalog.unnest($7::text[])
) as given (number, tx, id, code, column_name, reason)
where l.sink = $1 and l.tx = given.tx::xid8 and l.id = given.id and l.state = 'retrying'
