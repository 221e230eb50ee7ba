select
    s.paused,
    s.retired_at is not null,
    pg_catalog.pg_backend_pid(),
    exists (select from pillarbox.replay r where r.sink = s.sink and r.answered_at is null)
        or exists (
            select from pillarbox.dead_letter l where l.sink = s.sink and l.state = 'requested'
        )
from pillarbox.sink s
where s.sink = $1
