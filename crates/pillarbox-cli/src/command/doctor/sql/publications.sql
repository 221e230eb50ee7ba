-- Publications with the outbox or a leaf: name, whether for all tables, the tables that it names.
select
    pg_catalog.quote_ident(p.pubname),
    p.puballtables,
    (
        select pg_catalog.string_agg(r.prrelid::regclass::text, ', ')
        from pg_catalog.pg_publication_rel r
        join pg_catalog.pg_class c on c.oid = r.prrelid
        where r.prpubid = p.oid
            and c.relnamespace = 'pillarbox'::regnamespace
            and c.relname in ('event', 'event_0', 'event_1', 'event_2', 'event_3')
    )
from pg_catalog.pg_publication p
where exists (
    select
    from pg_catalog.pg_publication_tables t
    where t.pubname = p.pubname
        and t.schemaname = 'pillarbox'
        and t.tablename in ('event', 'event_0', 'event_1', 'event_2', 'event_3')
)
order by p.pubname
