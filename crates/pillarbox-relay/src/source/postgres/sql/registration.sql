select
    s.sink, s.origin, s.retired_at is not null,
    s.system_identifier = (select c.system_identifier from pg_catalog.pg_control_system() c)
        and s.database = (
            select d.oid from pg_catalog.pg_database d
            where d.datname = pg_catalog.current_database()
        )
from pillarbox.sink s
where s.name = $1
