select s.sink, s.origin, s.retired_at is not null
from pillarbox.sink s
where s.name = $1
