-- What a relay needs and the current user does not have.
select needed.what
from (
    select 'usage on the schema pillarbox' as what,
        pg_catalog.has_schema_privilege('pillarbox', 'usage') as held
    union all
    select 'select on ' || c.oid::regclass, pg_catalog.has_table_privilege(c.oid, 'select')
    from pg_catalog.pg_class c
    where c.relnamespace = 'pillarbox'::regnamespace and c.relkind in ('r', 'p', 'v')
    union all
    select right_on.privilege || ' on ' || c.oid::regclass,
        pg_catalog.has_table_privilege(c.oid, right_on.privilege)
    from (values
        ('event_0', 'truncate'), ('event_1', 'truncate'), ('event_2', 'truncate'),
        ('event_3', 'truncate'), ('batch', 'insert'), ('batch', 'delete'), ('delivery', 'insert'),
        ('delivery', 'delete'), ('sink', 'insert'), ('sink', 'update'),
        ('dead_letter', 'insert'), ('dead_letter', 'update')
    ) as right_on (name, privilege)
    join pg_catalog.pg_class c
        on c.relnamespace = 'pillarbox'::regnamespace and c.relname = right_on.name
    union all
    select 'update on ' || c.oid::regclass, pg_catalog.has_sequence_privilege(c.oid, 'update')
    from pg_catalog.pg_class c
    where c.relnamespace = 'pillarbox'::regnamespace and c.relname = 'ring_position'
        and c.relkind = 'S'
    union all
    select 'execute on ' || p.oid::regprocedure, pg_catalog.has_function_privilege(p.oid, 'execute')
    from pg_catalog.pg_proc p
    where p.pronamespace = 'pillarbox'::regnamespace
) needed
where not needed.held
