-- Whether anybody else reads or writes leaf {slot}. Asking for the lock takes a transaction id and
-- writes, whether it is given or not; a reader may stay for hours.
select exists (
    select from pg_catalog.pg_locks l
    where l.locktype = 'relation'
        and l.relation = 'pillarbox.event_{slot}'::regclass
        and l.database = (
            select d.oid from pg_catalog.pg_database d
            where d.datname = pg_catalog.current_database()
        )
        and l.pid is distinct from pg_catalog.pg_backend_pid()
)
