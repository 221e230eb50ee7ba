-- The ledger of sink $1 goes on in this cluster and database.
update pillarbox.sink
set system_identifier = (select c.system_identifier from pg_catalog.pg_control_system() c),
    database = (
        select d.oid from pg_catalog.pg_database d
        where d.datname = pg_catalog.current_database()
    )
where sink = $1
