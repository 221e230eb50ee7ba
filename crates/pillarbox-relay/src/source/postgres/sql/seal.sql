-- A batch whose number does not follow the last one of the ledger was sealed by somebody who does not
-- know of that one: no row then.
insert into pillarbox.batch (
    sink, number, batch_id, origin, kind, from_snapshot, to_snapshot, after_tx, after_id, until_tx,
    until_id, rows, bytes, digest, blocks, timeline, relay, parent, root, selection, terms
)
select
    $1, $2, $3, $4, $5, $6::text::pg_snapshot, $7::text::pg_snapshot, $8::text::xid8, $9,
    $10::text::xid8, $11, $12, $13, $14, $15::text::jsonb, pillarbox.timeline(), $16, $17, $18,
    $19::text::jsonb, $20::text::jsonb
where $2 = 1 + (select b.number from pillarbox.batch b where b.sink = $1 order by b.number desc limit 1)
returning sealed_at
