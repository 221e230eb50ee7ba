-- $1: the class of the locks that intakes hold.
select
    i.name, i.kind, i.source, i.taken, i.dead, i.restored,
    extract(epoch from pg_catalog.clock_timestamp() - i.taken_at)::double precision as taken_s,
    (
        select pg_catalog.count(*)
        from pillarbox.intake_letter l
        where l.intake = i.intake and l.state = 'dead'
    ) as letters,
    exists (
        select from pg_catalog.pg_locks l
        where l.locktype = 'advisory'
            and l.database = (
                select d.oid from pg_catalog.pg_database d
                where d.datname = pg_catalog.current_database()
            )
            and l.classid = $1::integer::oid
            and l.objid = i.intake::oid
            and l.objsubid = 2
            and l.granted
    ) as is_active
from pillarbox.intake i
where i.kind <> 'import'
order by i.name
