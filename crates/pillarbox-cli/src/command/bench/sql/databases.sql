-- What benchmarks made: databases by their name, whether somebody is connected, and whether the benchmark itself,
-- whose first session is called as its database, still runs.
select
    d.datname::text,
    exists (
        select from pg_catalog.pg_stat_activity a
        where a.datname = d.datname or a.application_name = d.datname
    )
from pg_catalog.pg_database d
where d.datname ~ '^pillarbox_bench_[0-9a-f]{16}$'
order by d.datname
