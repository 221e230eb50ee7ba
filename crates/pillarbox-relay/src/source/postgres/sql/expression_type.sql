-- The type $1 of an expression, told as that of a column; without a length, which a cast would cut to.
select
    case when b.typtype = 'e' or b.typname = 'citext' then 25 else b.oid end,
    pg_catalog.format_type(t.oid, -1)
from pg_catalog.pg_type t
join pg_catalog.pg_type b on b.oid = case t.typtype when 'd' then t.typbasetype else t.oid end
where t.oid = $1
