-- Settings as this user has them before ours.
select s.name, coalesce(s.reset_val, '')
from pg_catalog.pg_settings s
where s.name in (
    'fsync', 'full_page_writes', 'synchronous_standby_names', 'statement_timeout', 'lock_timeout',
    'idle_in_transaction_session_timeout', 'idle_session_timeout', 'transaction_timeout',
    'default_transaction_isolation', 'default_transaction_read_only', 'synchronous_commit'
)
