-- Who runs the benchmark, what they may make, which roles of the schema the cluster lacks, and whether they
-- may act as the owner of the schema (null where there is none).
select
    current_user::text,
    r.rolsuper or r.rolcreatedb,
    r.rolsuper or r.rolcreaterole,
    array(
        select wanted.name
        from pg_catalog.unnest(array[
            'pillarbox_owner', 'pillarbox_publisher', 'pillarbox_relay', 'pillarbox_reader'
        ]) as wanted (name)
        where not exists (select from pg_catalog.pg_roles p where p.rolname = wanted.name)
    ),
    (
        select pg_catalog.bool_or(pg_catalog.pg_has_role(
            current_user, o.oid,
            case
                when pg_catalog.current_setting('server_version_num')::integer >= 160000 then 'set'
                else 'member'
            end
        ))
        from pg_catalog.pg_roles o
        where o.rolname = 'pillarbox_owner'
    ),
    pg_catalog.current_setting('server_version'),
    pg_catalog.current_setting('fsync')
from pg_catalog.pg_roles r
where r.rolname = current_user
