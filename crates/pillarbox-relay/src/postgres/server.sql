select
    pg_catalog.current_setting('server_version_num')::integer,
    pg_catalog.current_setting('server_version'),
    pg_catalog.current_setting('server_encoding'),
    pg_catalog.pg_is_in_recovery()
