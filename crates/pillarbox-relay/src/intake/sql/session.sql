-- So a frozen intake keeps neither lock nor transaction: the server ends its session.
select
    pg_catalog.set_config('idle_session_timeout', $1, false),
    pg_catalog.set_config('idle_in_transaction_session_timeout', $1, false),
    pg_catalog.set_config('tcp_user_timeout', $1, false)
