-- The columns that an event keeps: all but its place.
select pg_catalog.quote_ident(a.attname)
from pg_catalog.pg_attribute a
where a.attrelid = 'pillarbox.event'::regclass
    and a.attnum > 0
    and not a.attisdropped
    and a.attgenerated = ''
    and a.attname <> all (array['slot', 'tx', 'id'])
order by a.attnum
