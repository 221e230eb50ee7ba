-- Copies events of the outbox into the dead letters of sink $1, with what is wrong with each. Not those
-- that lie there already. {names} and {values}: the columns that users added, each as text: no JSON
-- function reads a value with the escape of a NUL.
insert into pillarbox.dead_letter (
    sink, number, root, tx, id, event_id, event_type, event_date_time, environment, event_context,
    metadata_version, trace_parent, published_at, more, code, column_name, reason
)
select
    $1, given.number,
    (
        select coalesce(b.root, b.number)
        from pillarbox.batch b
        where b.sink = $1 and b.number = given.number
    ),
    e.tx, e.id, e.event_id, e.event_type, e.event_date_time, e.environment,
    e.event_context, e.metadata_version, e.trace_parent, e.published_at,
    pg_catalog.json_object({names}, {values}),
    given.code, given.column_name, given.reason
from rows from (
    pg_catalog.unnest($2::bigint[]), pg_catalog.unnest($3::text[]), pg_catalog.unnest($4::bigint[]),
    pg_catalog.unnest($5::integer[]), pg_catalog.unnest($6::text[]), pg_catalog.unnest($7::text[])
) as given (number, tx, id, code, column_name, reason)
join pillarbox.event e on e.tx = given.tx::xid8 and e.id = given.id
on conflict (sink, tx, id) do nothing
