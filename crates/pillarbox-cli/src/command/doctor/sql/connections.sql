-- Limits of sessions: of what, the remedy where it is no setting, sessions now, the limit.
select 'the server' as what, null::text as remedy,
    (select pg_catalog.count(*) from pg_catalog.pg_stat_activity a
     where a.backend_type = 'client backend'),
    pg_catalog.sum(s.setting::bigint * case s.name when 'max_connections' then 1 else -1 end)::bigint
from pg_catalog.pg_settings s
where s.name in ('max_connections', 'superuser_reserved_connections', 'reserved_connections')
union all
select 'the user ' || pg_catalog.quote_ident(r.rolname),
    'alter role ' || pg_catalog.quote_ident(r.rolname) || ' connection limit -1;',
    (select pg_catalog.count(*) from pg_catalog.pg_stat_activity a where a.usesysid = r.oid),
    r.rolconnlimit
from pg_catalog.pg_roles r
where r.rolname = current_user and r.rolconnlimit >= 0 and not r.rolsuper
union all
select 'the database ' || pg_catalog.quote_ident(d.datname),
    'alter database ' || pg_catalog.quote_ident(d.datname) || ' connection limit -1;',
    (select pg_catalog.count(*) from pg_catalog.pg_stat_activity a where a.datid = d.oid),
    d.datconnlimit
from pg_catalog.pg_database d
where d.datname = pg_catalog.current_database() and d.datconnlimit >= 0
