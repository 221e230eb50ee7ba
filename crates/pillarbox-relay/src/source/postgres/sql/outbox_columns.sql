-- The columns of the outbox. A domain counts as the type below it; labels of an enum and citext are text.
select
    a.attname::text,
    case when b.typtype = 'e' or b.typname = 'citext' then 25 else b.oid end,
    pg_catalog.format_type(a.atttypid, a.atttypmod),
    a.attnotnull
from pg_catalog.pg_attribute a
join pg_catalog.pg_type t on t.oid = a.atttypid
join pg_catalog.pg_type b on b.oid = case t.typtype when 'd' then t.typbasetype else t.oid end
where a.attrelid = 'pillarbox.event'::regclass and a.attnum > 0 and not a.attisdropped
order by a.attnum
