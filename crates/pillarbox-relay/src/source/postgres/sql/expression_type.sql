-- The type $1 of an expression, told as that of a column.
select
    case when b.typtype = 'e' or b.typname = 'citext' then 25 else b.oid end,
    pg_catalog.format_type(t.oid, null)
from pg_catalog.pg_type t
join pg_catalog.pg_type b on b.oid = case t.typtype when 'd' then t.typbasetype else t.oid end
where t.oid = $1
