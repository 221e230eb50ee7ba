-- Each leaf of the ring: whether it is there, is attached, has its key, is vacuumed, is unlogged.
select
    ring.slot,
    c.oid is not null,
    exists (
        select
        from pg_catalog.pg_inherits i
        where i.inhrelid = c.oid and i.inhparent = 'pillarbox.event'::regclass
    ),
    exists (
        select
        from pg_catalog.pg_index i
        where i.indrelid = c.oid
            and i.indisunique and i.indisvalid and i.indisready
            and i.indpred is null and i.indexprs is null
            and i.indnkeyatts = 2
            and (
                select pg_catalog.array_agg(a.attname::text order by key.place)
                from pg_catalog.unnest(i.indkey::smallint[]) with ordinality as key (attnum, place)
                join pg_catalog.pg_attribute a
                    on a.attrelid = c.oid and a.attnum = key.attnum
                where key.place <= 2
            ) = array['tx', 'id']
    ),
    not exists (
        select
        from pg_catalog.pg_options_to_table(c.reloptions) o
        where o.option_name = 'autovacuum_enabled' and not o.option_value::boolean
    ) or exists (
        select
        from pg_catalog.pg_class toast
        where toast.oid = c.reltoastrelid
            and not exists (
                select
                from pg_catalog.pg_options_to_table(toast.reloptions) o
                where o.option_name = 'autovacuum_enabled' and not o.option_value::boolean
            )
    ),
    coalesce(c.relpersistence <> 'p', false)
from pg_catalog.generate_series(0, 3) as ring (slot)
left join pg_catalog.pg_class c
    on c.relnamespace = 'pillarbox'::regnamespace and c.relname = 'event_' || ring.slot
order by ring.slot
