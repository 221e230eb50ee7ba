-- What others put on the outbox or a leaf: triggers, rules, row-level security, further indexes. What
-- stands on the outbox is not named again for its leaves.
with part as (
    select 'pillarbox.event'::regclass as relation
    union all
    select i.inhrelid from pg_catalog.pg_inherits i where i.inhparent = 'pillarbox.event'::regclass
)
select 'trigger' as kind, t.tgrelid::regclass::text, pg_catalog.quote_ident(t.tgname)
from part
join pg_catalog.pg_trigger t on t.tgrelid = part.relation
where not t.tgisinternal and t.tgparentid = 0
union all
select 'rule', r.ev_class::regclass::text, pg_catalog.quote_ident(r.rulename)
from part
join pg_catalog.pg_rewrite r on r.ev_class = part.relation
union all
select 'policy', c.oid::regclass::text, ''
from part
join pg_catalog.pg_class c on c.oid = part.relation
where c.relrowsecurity or c.relforcerowsecurity
union all
select 'index', i.indrelid::regclass::text, i.indexrelid::regclass::text
from part
join pg_catalog.pg_index i on i.indrelid = part.relation
where not exists (select from pg_catalog.pg_inherits up where up.inhrelid = i.indexrelid)
    and not exists (
        select
        from pg_catalog.pg_class c
        where c.oid = i.indexrelid
            and c.relname in ('event_0_tx_id', 'event_1_tx_id', 'event_2_tx_id', 'event_3_tx_id')
    )
order by 1, 2, 3
