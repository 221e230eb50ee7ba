insert into recover_judged
select given.tx::xid8, given.id, given.needed
from rows from (
    pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::bigint[]), pg_catalog.unnest($3::bigint[])
) as given (tx, id, needed)
on conflict (tx, id) do update set needed = recover_judged.needed | excluded.needed
