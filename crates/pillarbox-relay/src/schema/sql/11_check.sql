-- Version 4: what an event must be is one check. PostgreSQL reads and plans the expression of each CHECK
-- anew in each statement, which cost publishers more than the insert (docs/decisions/0012).

set local role pillarbox_owner;

-- True, or an error that shows nothing of the event. Whatever the publisher's search_path: every name in
-- it is qualified, operators too.
create function pillarbox.check_event(
    event_type text,
    event_date_time timestamptz,
    event_context json,
    metadata_version bigint,
    trace_parent text
) returns boolean
    language plpgsql volatile
as $$
begin
    if event_type operator(pg_catalog.<>) ''
        and pg_catalog.length(event_type) operator(pg_catalog.<=) 255
        and pg_catalog.isfinite(event_date_time)
        and pg_catalog.octet_length(event_context::pg_catalog.text)
            operator(pg_catalog.<=) pillarbox.event_bytes_max()
        and metadata_version operator(pg_catalog.>=) 0
        and (
            trace_parent is null
            or pg_catalog.length(trace_parent) operator(pg_catalog.<=) 255
        )
    then
        return true;
    end if;
    return pillarbox.refuse(case
        when event_type operator(pg_catalog.=) ''
            or pg_catalog.length(event_type) operator(pg_catalog.>) 255
        then pg_catalog.format(
            'event_type has %s characters; give it 1 to 255', pg_catalog.length(event_type)
        )
        when not pg_catalog.isfinite(event_date_time)
        then 'event_date_time is infinite; give it a time'
        when metadata_version operator(pg_catalog.<) 0
        then pg_catalog.format(
            'metadata_version is %s; it must not be negative', metadata_version
        )
        when pg_catalog.length(trace_parent) operator(pg_catalog.>) 255
        then 'trace_parent has more than 255 characters'
        else pg_catalog.format(
            'event_context has %s bytes, the limit is %s; publish less, or raise it with: '
                'pillarbox settings --event-bytes-max N',
            pg_catalog.octet_length(event_context::pg_catalog.text), pillarbox.event_bytes_max()
        )
    end);
end
$$;
grant execute on function pillarbox.check_event(text, timestamptz, json, bigint, text)
    to pillarbox_publisher, pillarbox_relay;

-- Puts the one check in the place of five, unless somebody has used the outbox for longer than
-- publishers shall wait; says whether it is there. What was checked by five needs no other look: NOT VALID.
create function pillarbox.unite_checks() returns boolean
    language plpgsql volatile
    set search_path = pg_catalog
    set lock_timeout = '20ms'
as $$
begin
    if exists (
        select from pg_constraint
        where conrelid = 'pillarbox.event'::regclass and conname = 'event_is_checked'
    ) then
        return true;
    end if;
    alter table pillarbox.event
        drop constraint if exists event_type_has_1_to_255_characters,
        drop constraint if exists event_date_time_is_finite,
        drop constraint if exists event_context_within_limit,
        drop constraint if exists metadata_version_is_not_negative,
        drop constraint if exists trace_parent_is_short,
        add constraint event_is_checked check (
            pillarbox.check_event(
                event_type, event_date_time, event_context, metadata_version, trace_parent
            )
        ) not valid;
    return true;
exception when lock_not_available or deadlock_detected then
    return false;
end
$$;
-- Useless to a relay, which owns no table; `pillarbox doctor` wants it to have every function.
grant execute on function pillarbox.unite_checks() to pillarbox_relay;
select pillarbox.unite_checks();

-- Since version 18 the server makes such identities itself.
do $$
begin
    if pg_catalog.to_regprocedure('pg_catalog.uuidv7()') is not null then
        create or replace function pillarbox.uuid_v7() returns uuid
            language sql volatile
            return pg_catalog.uuidv7();
    end if;
end
$$;

insert into pillarbox.schema_version (version) values (4);
reset role;
