-- Rights. PUBLIC has nothing.

revoke all on schema pillarbox from public;
revoke execute on all functions in schema pillarbox from public;
grant usage on schema pillarbox to pillarbox_publisher, pillarbox_relay, pillarbox_reader;

-- A publisher writes events, and reads back nothing but the event_id.
grant insert (
    event_id, event_type, event_date_time, environment, event_context, metadata_version,
    trace_parent
) on pillarbox.event to pillarbox_publisher;
grant select (event_id) on pillarbox.event to pillarbox_publisher;
grant select on sequence pillarbox.ring_position to pillarbox_publisher;
grant execute on function
    pillarbox.ring_slot(), pillarbox.environment_default(), pillarbox.event_bytes_max(),
    pillarbox.refuse(text), pillarbox.uuid_v7(),
    pillarbox.publish(text, json, timestamptz, text, bigint, uuid, text),
    pillarbox.publish_batch(text[], json[], timestamptz[], text[], bigint[], uuid[], text[])
    to pillarbox_publisher;

-- A relay reads events, appends to the ledger, turns the ring and empties leaves.
grant select on all tables in schema pillarbox to pillarbox_relay;
grant truncate on
    pillarbox.event_0, pillarbox.event_1, pillarbox.event_2, pillarbox.event_3
    to pillarbox_relay;
grant select, update on sequence pillarbox.ring_position to pillarbox_relay;
grant insert, delete on pillarbox.batch, pillarbox.delivery to pillarbox_relay;
grant insert, update on pillarbox.sink to pillarbox_relay;
grant execute on all functions in schema pillarbox to pillarbox_relay;

-- A reader sees where everything stands, and no payload.
grant select on
    pillarbox.schema_version, pillarbox.settings, pillarbox.sink, pillarbox.batch,
    pillarbox.delivery, pillarbox.open_batch, pillarbox.sink_position
    to pillarbox_reader;
grant select (
    slot, tx, id, event_id, event_type, event_date_time, environment, metadata_version,
    trace_parent, published_at
) on pillarbox.event to pillarbox_reader;
grant select on sequence pillarbox.ring_position to pillarbox_reader;
grant execute on function
    pillarbox.environment_default(), pillarbox.event_bytes_max(), pillarbox.timeline(),
    pillarbox.is_done(xid8, bigint, pg_snapshot, pg_snapshot, xid8, bigint),
    pillarbox.undone(pg_snapshot, pg_snapshot, xid8, bigint),
    pillarbox.oldest_undone(pg_snapshot, pg_snapshot, xid8, bigint),
    pillarbox.safe_position(integer, timestamptz, bigint)
    to pillarbox_reader;

insert into pillarbox.schema_version (version) values (1);
reset role;
