-- The column $1 of the outbox.
select a.attname
from pg_catalog.pg_attribute a
where a.attrelid = 'pillarbox.event'::regclass and a.attname = $1 and a.attnum > 0
    and not a.attisdropped
