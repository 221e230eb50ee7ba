insert into pillarbox.event (event_type, event_context)
select bench.event_type(n), bench.context(n, $3::integer)
from pg_catalog.generate_series($1::bigint, $2::bigint) as n
