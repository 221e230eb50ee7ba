select s.paused, s.retired_at is not null, pg_catalog.pg_backend_pid() from pillarbox.sink s where s.sink = $1
