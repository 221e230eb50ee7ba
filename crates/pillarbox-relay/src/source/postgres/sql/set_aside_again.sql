-- Dead letters of sink $1 that are refused once more. Retried in vain, or lost by the sink and refused when
-- it was to have them again: dead. Delivered again on request: whatever became of them stays.
update pillarbox.dead_letter l
set state = case when again.is_copy then l.state else 'dead' end,
    -- Other batches may still read it as what that retry delivered.
    retry_number = case when l.retry_number <> again.root then l.retry_number end,
    number = case when again.is_copy then l.number else again.number end,
    root = case again.kind when 'window' then again.root else l.root end,
    code = again.code, column_name = again.column_name, reason = again.reason
from (
    select
        given.*, coalesce(b.root, b.number) as root, about.kind,
        coalesce(about.kind = 'replay', false) as is_copy
    from rows from (
        pg_catalog.unnest($2::bigint[]), pg_catalog.unnest($3::text[]),
        pg_catalog.unnest($4::bigint[]), pg_catalog.unnest($5::integer[]),
        pg_catalog.unnest($6::text[]), pg_catalog.unnest($7::text[])
    ) as given (number, tx, id, code, column_name, reason)
    join pillarbox.batch b on b.sink = $1 and b.number = given.number
    left join lateral pillarbox.subject($1, given.number) about on true
) again
where l.sink = $1 and l.tx = again.tx::xid8 and l.id = again.id
