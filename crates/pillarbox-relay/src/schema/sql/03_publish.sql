-- Publishing by function call. Plain INSERT and COPY into pillarbox.event are equal citizens.
-- Functions run with the caller's rights; every name in them is qualified.

-- A parameter that is null takes the column's default.
create function pillarbox.publish(
    event_type text,
    event_context json,
    event_date_time timestamptz default null,
    environment text default null,
    metadata_version bigint default null,
    event_id uuid default null,
    trace_parent text default null
) returns uuid
    language plpgsql volatile
as $$
declare
    identity constant uuid := coalesce(publish.event_id, pillarbox.uuid_v7());
begin
    insert into pillarbox.event (
        event_id, event_type, event_date_time, environment, event_context, metadata_version,
        trace_parent
    ) values (
        identity,
        publish.event_type,
        coalesce(publish.event_date_time, pg_catalog.clock_timestamp()),
        coalesce(publish.environment, pillarbox.environment_default()),
        publish.event_context,
        coalesce(publish.metadata_version, 1),
        publish.trace_parent
    );
    return identity;
end
$$;

-- Element n of each array belongs to event n; an array that is null takes the column's default.
-- Returns the event ids in the order of the arrays.
create function pillarbox.publish_batch(
    event_types text[],
    event_contexts json[],
    event_date_times timestamptz[] default null,
    environments text[] default null,
    metadata_versions bigint[] default null,
    event_ids uuid[] default null,
    trace_parents text[] default null
) returns setof uuid
    language plpgsql volatile
as $$
declare
    events constant integer := pg_catalog.cardinality(event_types);
begin
    if events is distinct from pg_catalog.cardinality(event_contexts)
        or events <> any (array[
            pg_catalog.cardinality(event_date_times),
            pg_catalog.cardinality(environments),
            pg_catalog.cardinality(metadata_versions),
            pg_catalog.cardinality(event_ids),
            pg_catalog.cardinality(trace_parents)
        ])
    then
        raise exception using
            errcode = 'array_subscript_error',
            message = 'the arrays given to pillarbox.publish_batch differ in length';
    end if;
    return query
    insert into pillarbox.event (
        event_id, event_type, event_date_time, environment, event_context, metadata_version,
        trace_parent
    )
    select
        coalesce(given.event_id, pillarbox.uuid_v7()),
        given.event_type,
        coalesce(given.event_date_time, pg_catalog.clock_timestamp()),
        coalesce(given.environment, pillarbox.environment_default()),
        given.event_context,
        coalesce(given.metadata_version, 1),
        given.trace_parent
    from rows from (
        pg_catalog.unnest(event_types),
        pg_catalog.unnest(event_contexts),
        pg_catalog.unnest(event_date_times),
        pg_catalog.unnest(environments),
        pg_catalog.unnest(metadata_versions),
        pg_catalog.unnest(event_ids),
        pg_catalog.unnest(trace_parents)
    ) with ordinality as given (
        event_type, event_context, event_date_time, environment, metadata_version, event_id,
        trace_parent, place
    )
    order by given.place
    returning event.event_id;
end
$$;
