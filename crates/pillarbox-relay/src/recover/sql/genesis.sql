-- Where sink $1 starts again: $3. Under a new origin, because the sink may hold numbers that this
-- ledger will use. $4: events of batches that were judged again, those after $5, and the sink holds.
with genesis as (
    insert into pillarbox.batch (
        sink, number, batch_id, origin, kind, from_snapshot, to_snapshot, rows, bytes, digest,
        blocks, timeline, relay, parent
    )
    select
        $1, pg_catalog.max(b.number) + 1, pg_catalog.gen_random_uuid(), $2, 'genesis',
        $3::text::pg_snapshot, $3::text::pg_snapshot, $4, 0, 0, '[]', pillarbox.timeline(), 'recovery', $5
    from pillarbox.batch b
    where b.sink = $1
    returning number
)
update pillarbox.sink s
set origin = $2,
    genesis = genesis.number,
    system_identifier = (select c.system_identifier from pg_catalog.pg_control_system() c),
    database = (
        select d.oid from pg_catalog.pg_database d
        where d.datname = pg_catalog.current_database()
    ),
    stopped_at = null,
    stopped_reason = null
from genesis
where s.sink = $1
