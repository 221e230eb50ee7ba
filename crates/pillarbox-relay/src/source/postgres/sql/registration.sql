select
    s.sink, s.origin, s.retired_at is not null,
    s.system_identifier = (select c.system_identifier from pg_catalog.pg_control_system() c)
from pillarbox.sink s
where s.name = $1
