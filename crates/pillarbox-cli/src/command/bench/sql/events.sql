select bench.event_type(n), bench.context(n, $2::integer)::text
from pg_catalog.generate_series(1, $1::bigint) as n
