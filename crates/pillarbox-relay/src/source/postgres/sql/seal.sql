insert into pillarbox.batch (
    sink, number, batch_id, origin, kind, from_snapshot, to_snapshot, after_tx, after_id, until_tx,
    until_id, rows, bytes, digest, blocks, timeline, relay
) values (
    $1, $2, $3, $4, $5, $6::text::pg_snapshot, $7::text::pg_snapshot, $8::text::xid8, $9,
    $10::text::xid8, $11, $12, $13, $14, $15::text::jsonb, pillarbox.timeline(), $16
)
returning sealed_at
