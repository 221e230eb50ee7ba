-- The statement that makes the database of the benchmark: with the locale and on the disk of the one that is
-- configured.
select
    pg_catalog.format(
        'create database %I template template0 encoding %L lc_collate %L lc_ctype %L',
        $1::text, 'UTF8', d.datcollate, d.datctype
    )
    || case
        when t.spcname <> 'pg_default' and pg_catalog.has_tablespace_privilege(t.oid, 'create')
            then pg_catalog.format(' tablespace %I', t.spcname)
        else ''
    end
from pg_catalog.pg_database d
join pg_catalog.pg_tablespace t on t.oid = d.dattablespace
where d.datname = pg_catalog.current_database()
