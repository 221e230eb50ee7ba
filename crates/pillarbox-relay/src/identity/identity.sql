-- What the ledger of sink $1 says about this database, and what its rows themselves show: each seal
-- is a transaction of its own, and the server keeps in xmin which one wrote a row. A copy of the files
-- keeps that; a dump that is restored writes its rows anew.
with here as (
    select
        c.system_identifier,
        (
            select d.oid from pg_catalog.pg_database d
            where d.datname = pg_catalog.current_database()
        ) as database,
        pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot()) as next
    from pg_catalog.pg_control_system() c
), seal as materialized (
    select b.number, b.kind, b.xmin::text as writer, b.to_snapshot
    from pillarbox.batch b
    where b.sink = $1 and b.kind in ('genesis', 'window')
    order by b.number desc
    limit 100
), last as (
    select * from seal order by number desc limit 1
)
select
    s.system_identifier = here.system_identifier as same_cluster,
    s.database = here.database as same_database,
    (select pg_catalog.count(*) from seal) as seals,
    (select pg_catalog.count(distinct writer) from seal) as writers,
    last.kind = 'genesis' as is_genesis,
    last.writer::text::bigint as writer,
    pg_catalog.pg_snapshot_xmax(last.to_snapshot)::text as sealed_to,
    here.next::text as next,
    coalesce(
        (select e.tx from pillarbox.event e order by e.tx desc, e.id desc limit 1), '0'::xid8
    )::text as newest
from pillarbox.sink s
cross join here
cross join last
where s.sink = $1
