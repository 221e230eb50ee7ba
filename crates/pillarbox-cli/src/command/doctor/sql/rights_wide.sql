-- Rights on outbox, ring and ledger that only the owner and relays should have: whether it is on a
-- sequence, the object, the right, the column, the user.
with watched as (
    select c.oid, c.relkind, c.relowner, c.relacl
    from pg_catalog.pg_class c
    where c.relnamespace = 'pillarbox'::regnamespace
        and (c.relkind in ('r', 'p') or c.relname = 'ring_position')
), granted as (
    select w.oid, w.relkind, a.grantee, a.privilege_type, null::name as attname
    from watched w
    cross join lateral pg_catalog.aclexplode(w.relacl) a
    where a.grantee <> w.relowner
    union all
    select w.oid, w.relkind, a.grantee, a.privilege_type, t.attname
    from watched w
    join pg_catalog.pg_attribute t on t.attrelid = w.oid
    cross join lateral pg_catalog.aclexplode(t.attacl) a
    where a.grantee <> w.relowner
)
select
    g.relkind = 'S',
    g.oid::regclass::text,
    g.privilege_type,
    pg_catalog.quote_ident(g.attname),
    case g.grantee when 0 then 'public' else pg_catalog.quote_ident(r.rolname) end
from granted g
left join pg_catalog.pg_roles r on r.oid = g.grantee
where r.rolname is distinct from 'pillarbox_relay'
    and case
        when g.relkind = 'S' then g.privilege_type in ('USAGE', 'UPDATE')
        when g.privilege_type = 'SELECT' then g.grantee = 0
        when g.privilege_type = 'INSERT' then
            g.attname is null or g.attname in ('slot', 'tx', 'id', 'published_at')
        else g.privilege_type in ('UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER')
    end
order by 2, 5, 3, 4
