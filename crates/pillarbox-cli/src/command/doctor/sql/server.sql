select
    'postgresql ' || pg_catalog.current_setting('server_version'),
    pg_catalog.current_database()::text,
    current_user::text
