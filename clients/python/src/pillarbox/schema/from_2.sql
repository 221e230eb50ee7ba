begin isolation level read committed;
select pg_advisory_xact_lock(1346522968, -1);
-- Whoever needs a table waits behind this script: if it fails for that, run it again.
set local lock_timeout = '1s';

-- 10_intake
-- Version 3: intakes, by which events come in outside of a business transaction. Takes no lock that a
-- publisher could wait for.

set local role pillarbox_owner;

-- A way in, and where it stands: written in the transaction of the rows that it brought.
create table pillarbox.intake (
    intake integer primary key generated always as identity,
    name text not null
        constraint name_is_taken_once unique
        constraint name_is_a_word check (name ~ '^[a-z][a-z0-9_-]{0,31}$'),
    kind text not null
        constraint kind_is_known check (kind in ('redis-stream', 'redis-list', 'import')),
    -- The key in Redis, or what identifies the imported lines.
    source text not null,
    -- Stream: the greatest id that was taken. Import: the bytes that were, and the lines.
    position text,
    -- Entries that became events, that became dead letters, and that came again and were not taken.
    taken bigint not null default 0,
    dead bigint not null default 0,
    restored bigint not null default 0,
    -- What intake_memory no longer holds: up to this id of a stream, up to this chunk of a list.
    forgotten text,
    created_at timestamptz not null default pg_catalog.clock_timestamp(),
    taken_at timestamptz
);

-- A list that was renamed to be taken. `previous` is the chunk that Redis knew as the last one when it
-- was renamed, '' for none; null for a list that somebody else has renamed.
create table pillarbox.intake_chunk (
    intake integer not null references pillarbox.intake,
    chunk uuid not null,
    number bigint not null generated always as identity,
    previous text,
    -- Its first entries that had been taken before from a list that Redis has lost since.
    restored bigint not null,
    -- Nobody knows which of its entries had been taken before.
    doubtful boolean not null,
    taken bigint not null default 0,
    is_done boolean not null default false,
    taken_at timestamptz not null default pg_catalog.clock_timestamp(),
    primary key (intake, chunk)
);
create index intake_chunk_previous on pillarbox.intake_chunk (intake, previous);

-- Entries that were taken, as hashes of 16 bytes in their order: a Redis that comes back as it was some
-- time ago shows them again. From `low` to `high`: ids of a stream, places in a chunk.
create table pillarbox.intake_memory (
    intake integer not null references pillarbox.intake,
    memory bigint not null generated always as identity,
    chunk uuid,
    low bytea not null,
    high bytea not null,
    hashes bytea not null,
    taken_at timestamptz not null default pg_catalog.clock_timestamp(),
    primary key (intake, memory)
);
create index intake_memory_chunk on pillarbox.intake_memory (intake, chunk, low);
create index intake_memory_taken_at on pillarbox.intake_memory (intake, taken_at);

-- Entries that are no event, or of which nobody knows whether they are one already. They share their
-- numbers with the dead letters of sinks.
create table pillarbox.intake_letter (
    dead_letter bigint primary key
        default pg_catalog.nextval('pillarbox.dead_letter_dead_letter_seq'),
    intake integer not null references pillarbox.intake,
    -- Where it was: the id in a stream, chunk and place in a list, the line of a file.
    place text not null,
    -- How the bytes are read: a JSON object, or the fields of a stream's entry as RESP writes them.
    format text not null constraint format_is_known check (format in ('json', 'fields')),
    bytes bigint not null,
    -- SQLSTATE, where PostgreSQL refused it.
    code text,
    reason text not null,
    dead_at timestamptz not null default pg_catalog.clock_timestamp(),
    -- dead → published, as the event `event_id`; dead → dropped.
    state text not null default 'dead'
        constraint state_is_known check (state in ('dead', 'published', 'dropped')),
    event_id uuid,
    decided_at timestamptz,
    decided_by text,
    decided_reason text,
    constraint drop_has_a_reason check (state <> 'dropped' or decided_reason is not null)
);
create index intake_letter_of on pillarbox.intake_letter (intake, dead_letter);

-- The untouched bytes, in pieces, so that an entry of any size passes through bounded memory.
create table pillarbox.intake_letter_piece (
    dead_letter bigint not null references pillarbox.intake_letter,
    piece integer not null,
    entry bytea not null,
    primary key (dead_letter, piece)
);

-- An intake is both: a publisher, and somebody who keeps books as a relay does.
grant usage on sequence pillarbox.dead_letter_dead_letter_seq to pillarbox_relay;
grant select, insert, update on
    pillarbox.intake, pillarbox.intake_letter, pillarbox.intake_letter_piece
    to pillarbox_relay;
grant select, insert, update, delete on pillarbox.intake_chunk, pillarbox.intake_memory
    to pillarbox_relay;
grant select on pillarbox.intake, pillarbox.intake_chunk, pillarbox.intake_letter
    to pillarbox_reader;

insert into pillarbox.schema_version (version) values (3);
reset role;

-- 11_check
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

commit;
