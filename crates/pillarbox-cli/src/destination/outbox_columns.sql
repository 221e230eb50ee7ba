select a.attname::text, a.atttypid::oid, pg_catalog.format_type(a.atttypid, a.atttypmod), a.attnotnull
from pg_catalog.pg_attribute a
where a.attrelid = 'pillarbox.event'::regclass and a.attnum > 0 and not a.attisdropped
order by a.attnum
