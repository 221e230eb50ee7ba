-- Registration of sinks. It shares a lock with the truncation of leaves, so that a leaf is never
-- emptied by a relay that has not seen the new sink.

-- (1346522968, 0): turning and truncating the ring. 1346522968 is 'PBOX' in ASCII.
create function pillarbox.register_sink(
    name text, fingerprint text, origin integer, from_now boolean default false
) returns integer
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    registered integer;
    start pg_snapshot := '1:1:';
begin
    perform pg_catalog.pg_advisory_xact_lock(1346522968, 0);
    if from_now then
        -- After the lock: what a truncation has removed until here lies before this snapshot.
        start := pg_catalog.pg_current_snapshot();
    end if;
    insert into pillarbox.sink (name, fingerprint, origin, system_identifier, database)
    values (
        register_sink.name, register_sink.fingerprint, register_sink.origin,
        (select c.system_identifier from pg_catalog.pg_control_system() c),
        (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())
    )
    returning sink into registered;
    insert into pillarbox.batch (
        sink, number, batch_id, origin, kind, from_snapshot, to_snapshot, rows, bytes, digest,
        blocks, timeline, relay
    ) values (
        registered, 0, pg_catalog.gen_random_uuid(), register_sink.origin, 'genesis', start, start,
        0, 0, 0, '[]', pillarbox.timeline(), 'registration'
    );
    return registered;
end
$$;
