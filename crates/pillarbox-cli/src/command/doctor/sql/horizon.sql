-- What has held the horizon of the cluster for $1 seconds, or by so many transactions that it shows: kind,
-- name, where it belongs to, pid, age in seconds, age in transactions, whether it writes, whether it is in use.
select 'backend' as kind,
    coalesce(a.usename, '?') || ' as ' || coalesce(nullif(a.application_name, ''), '?') as name,
    'database ' || coalesce(a.datname, '?') || ', ' || coalesce(a.state, '?') as about,
    a.pid,
    extract(epoch from pg_catalog.clock_timestamp() - a.xact_start)::double precision as age_s,
    null::bigint as xids,
    a.backend_xid is not null as is_writing,
    true as is_in_use
from pg_catalog.pg_stat_activity a
where a.pid <> pg_catalog.pg_backend_pid()
    and a.backend_type = 'client backend'
    and (a.backend_xmin is not null or a.backend_xid is not null)
    and a.xact_start <= pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $1)
union all
select 'prepared', pg_catalog.quote_literal(p.gid),
    'database ' || p.database || ', ' || p.owner, null,
    extract(epoch from pg_catalog.clock_timestamp() - p.prepared)::double precision,
    pg_catalog.age(p.transaction)::bigint, true, true
from pg_catalog.pg_prepared_xacts p
where p.prepared <= pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $1)
union all
select 'slot', pg_catalog.quote_literal(s.slot_name), s.slot_type, s.active_pid, null,
    greatest(pg_catalog.age(s.xmin), pg_catalog.age(s.catalog_xmin))::bigint, false, s.active
from pg_catalog.pg_replication_slots s
where (s.xmin is not null or s.catalog_xmin is not null)
    -- A slot does not say since when. Unread it only ever falls behind.
    and (not s.active or greatest(pg_catalog.age(s.xmin), pg_catalog.age(s.catalog_xmin)) > 1000000)
union all
select 'standby', coalesce(nullif(r.application_name, ''), '?'), r.usename, r.pid, null,
    pg_catalog.age(r.backend_xmin)::bigint, false, true
from pg_catalog.pg_stat_replication r
where pg_catalog.age(r.backend_xmin) > 1000000
order by age_s desc nulls last, xids desc nulls last
limit 20
