select s.paused, s.retired_at is not null from pillarbox.sink s where s.sink = $1
