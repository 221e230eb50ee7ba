-- Who else has a lock on the outbox, or ($1 is false) on another table of the schema, the longest first,
-- and never what they run.
select
    l.pid,
    a.application_name,
    a.state,
    extract(epoch from pg_catalog.clock_timestamp() - coalesce(a.xact_start, p.prepared))::bigint,
    pg_catalog.quote_literal(p.gid),
    pg_catalog.string_agg(distinct pg_catalog.format('pillarbox.%I', c.relname), ', ')
from pg_catalog.pg_locks l
join pg_catalog.pg_class c on c.oid = l.relation
left join pg_catalog.pg_stat_activity a on a.pid = l.pid
left join pg_catalog.pg_locks x
    on l.pid is null and x.pid is null and x.locktype = 'transactionid'
    and x.virtualtransaction = l.virtualtransaction
left join pg_catalog.pg_prepared_xacts p on p.transaction = x.transactionid
where l.locktype = 'relation'
    and l.granted
    and l.pid is distinct from pg_catalog.pg_backend_pid()
    and l.database = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
    and c.relnamespace = pg_catalog.to_regnamespace('pillarbox')
    and c.relkind in ('r', 'p')
    and (c.relname like 'event%') = $1
group by 1, 2, 3, 4, 5
order by 4 desc nulls last
limit 3
