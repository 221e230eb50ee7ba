-- Roles of the schema that a benchmark made, because the cluster had none; none while another benchmark than
-- this one runs, which needs them.
select r.rolname::text
from pg_catalog.pg_roles r
where pg_catalog.shobj_description(r.oid, 'pg_authid') = $1
    and r.rolname in ('pillarbox_owner', 'pillarbox_publisher', 'pillarbox_relay', 'pillarbox_reader')
    and not exists (
        select from pg_catalog.pg_stat_activity a
        where a.application_name ~ '^pillarbox_bench_[0-9a-f]{16}$' and a.application_name <> $2
    )
order by r.rolname
