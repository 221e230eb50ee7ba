begin isolation level read committed;
select pg_advisory_xact_lock(1346522968, -1);
-- Whoever needs a table waits behind this script: if it fails for that, run it again.
set local lock_timeout = '1s';

-- 08_dead_letters
-- Version 2: batches that are split, set aside, and delivered again. Takes no lock that a publisher
-- could wait for.

set local role pillarbox_owner;

-- A child's family: its first batch. What a batch holds of its span, where that is not all:
-- {"store": …, "only": partition, "times": [us, us], "without": [{"tx": n, "id": n}, …]}. On what it was
-- sealed: {"proven": [column, …], "token_window": {"blocks": n, "seconds": n}}.
alter table pillarbox.batch
    add column root bigint,
    add column selection jsonb,
    add column terms jsonb,
    drop constraint kind_is_known,
    add constraint kind_is_known
        check (kind in ('genesis', 'window', 'child', 'replay', 'repair', 'retry'));
create index batch_root on pillarbox.batch (sink, root) where root is not null;
create index batch_parent on pillarbox.batch (sink, parent) where parent is not null;
create index batch_genesis on pillarbox.batch (sink, number) where kind = 'genesis';

create or replace view pillarbox.open_batch as
    select b.*
    from pillarbox.batch b
    where b.kind <> 'genesis'
        and not exists (
            select from pillarbox.delivery d where d.sink = b.sink and d.number = b.number
        );

-- Ordinals of the blocks that are in the sink; null when all are.
alter table pillarbox.delivery add column blocks smallint[];

-- Events that a sink cannot take, untouched. `more` holds the columns that users have added, as text.
create table pillarbox.dead_letter (
    dead_letter bigint primary key generated always as identity,
    sink integer not null references pillarbox.sink,
    number bigint not null,
    -- The first batch of the family in which it was first set aside.
    root bigint not null,
    tx xid8 not null,
    id bigint not null,
    event_id uuid not null,
    event_type text not null,
    event_date_time timestamptz not null,
    environment text not null,
    event_context json not null,
    metadata_version bigint not null,
    trace_parent text,
    published_at timestamptz not null,
    more json not null,
    code integer,
    column_name text,
    reason text not null,
    dead_at timestamptz not null default pg_catalog.clock_timestamp(),
    -- dead → requested → retrying → delivered, or dead again; dead → dropped.
    state text not null default 'dead'
        constraint state_is_known
        check (state in ('dead', 'requested', 'retrying', 'delivered', 'dropped')),
    retry_number bigint,
    decided_at timestamptz,
    decided_by text,
    decided_reason text,
    constraint event_is_dead_once unique (sink, tx, id),
    constraint drop_has_a_reason check (state <> 'dropped' or decided_reason is not null)
);
create index dead_letter_dead_at on pillarbox.dead_letter (sink, dead_at);
create index dead_letter_retry on pillarbox.dead_letter (sink, retry_number)
    where retry_number is not null;
create index dead_letter_requested on pillarbox.dead_letter (sink, tx, id)
    where state = 'requested';

-- Wishes to deliver a batch again, or a part of it. The relay of the sink answers them.
create table pillarbox.replay (
    replay bigint primary key generated always as identity,
    sink integer not null references pillarbox.sink,
    kind text not null constraint kind_is_known check (kind in ('replay', 'repair')),
    parent bigint not null,
    -- One partition of the destination; null for all.
    only_partition text,
    -- Events that happened from `since` on and before `until`; null for all.
    since timestamptz,
    until timestamptz,
    requested_at timestamptz not null default pg_catalog.clock_timestamp(),
    requested_by text not null default session_user,
    -- The batch that answers the wish, or why none can.
    number bigint,
    refused text,
    answered_at timestamptz,
    constraint times_are_whole check ((since is null) = (until is null))
);
create index replay_open on pillarbox.replay (sink, replay) where answered_at is null;

-- An open child keeps its family's first batch, and all after it, from being safe.
create or replace function pillarbox.safe_position(
    sink integer, as_of timestamptz, known_safe bigint
) returns table (
        number bigint, from_snapshot pg_snapshot, to_snapshot pg_snapshot, until_tx xid8,
        until_id bigint
    )
    language sql stable
begin atomic
    select b.number, b.from_snapshot, b.to_snapshot, b.until_tx, b.until_id
    from pillarbox.batch b
    where b.sink = safe_position.sink
        and b.kind in ('genesis', 'window')
        and b.number < least(
            (
                select o.number
                from pillarbox.batch o
                left join pillarbox.delivery d on d.sink = o.sink and d.number = o.number
                where o.sink = safe_position.sink
                    and o.number > safe_position.known_safe
                    and o.kind <> 'genesis'
                    and (d.number is null or d.delivered_at > safe_position.as_of)
                order by o.number
                limit 1
            ),
            (
                select pg_catalog.min(o.root)
                from pillarbox.batch o
                left join pillarbox.delivery d on d.sink = o.sink and d.number = o.number
                where o.sink = safe_position.sink
                    and o.root > safe_position.known_safe
                    and (d.number is null or d.delivered_at > safe_position.as_of)
            ),
            1099511627776
        )
    order by b.number desc
    limit 1;
end;

-- What a batch is about: the first batch of its family and, as long as that is a repair, of the family
-- that it repairs. No row when the ledger has forgotten that.
create function pillarbox.subject(sink integer, number bigint)
    returns table (number bigint, kind text, is_repair boolean)
    language sql stable
begin atomic
    with recursive family (number, kind, parent, is_repair) as (
        select f.number, f.kind, f.parent, f.kind = 'repair'
        from pillarbox.batch b
        join pillarbox.batch f on f.sink = b.sink and f.number = coalesce(b.root, b.number)
        where b.sink = subject.sink and b.number = subject.number
        union all
        select f.number, f.kind, f.parent, true
        from family
        join pillarbox.batch b on b.sink = subject.sink and b.number = family.parent
        join pillarbox.batch f on f.sink = b.sink and f.number = coalesce(b.root, b.number)
        where family.kind = 'repair'
    )
    select family.number, family.kind, family.is_repair
    from family
    where family.kind <> 'repair';
end;

-- How many events are not done at the position.
create function pillarbox.count_undone(
    from_snapshot pg_snapshot, to_snapshot pg_snapshot, until_tx xid8, until_id bigint
) returns bigint
    language sql stable
    set enable_seqscan = off set enable_bitmapscan = off
    set enable_hashjoin = off set enable_mergejoin = off
begin atomic
    select pg_catalog.count(*)
    from pillarbox.undone(from_snapshot, to_snapshot, until_tx, until_id);
end;

-- Where the events of each sink are. What was truncated is counted from the ledger, and the ledger
-- itself forgets after its retention: the numbers reach back as far as it does. `published` is counted
-- from what was sealed, the others from what became of it:
-- published = pending + in_flight + delivered + dead + dropped.
-- What was delivered again on request is not counted again. Reads the whole ledger once.
create function pillarbox.accounting() returns table (
    sink text, published bigint, pending bigint, in_flight bigint, delivered bigint, dead bigint,
    dropped bigint
)
    language sql stable
    set enable_seqscan = on set enable_bitmapscan = on
    set enable_hashjoin = on set enable_mergejoin = on
begin atomic
    select
        s.name,
        pending.rows + ledger.sealed + letters.older,
        pending.rows,
        ledger.in_flight,
        ledger.settled - letters.repaired + letters.delivered,
        letters.dead,
        letters.dropped
    from pillarbox.sink s
    join pillarbox.sink_position p on p.sink = s.sink
    cross join lateral (
        select pillarbox.count_undone(
            p.from_snapshot, p.to_snapshot, p.until_tx, p.until_id
        ) as rows
    ) pending
    cross join lateral (
        -- A recovery judged every batch again that its ledger did not prove: its genesis has those of
        -- their events that the sink held, and the rest was published again.
        select coalesce(
            pg_catalog.range_agg(pg_catalog.int8range(g.parent, g.number, '()')), '{}'
        ) as numbers
        from pillarbox.batch g
        where g.sink = s.sink and g.kind = 'genesis' and g.parent is not null
    ) judged
    cross join lateral (
        select
            coalesce(
                pg_catalog.sum(
                    b.rows + coalesce(pg_catalog.jsonb_array_length(b.selection -> 'without'), 0)
                ) filter (where b.kind in ('genesis', 'window')),
                0
            )::bigint as sealed,
            coalesce(
                pg_catalog.sum(b.rows) filter (where b.kind <> 'genesis' and d.number is null), 0
            )::bigint as in_flight,
            coalesce(
                pg_catalog.sum(case b.kind when 'genesis' then b.rows else d.rows end), 0
            )::bigint as settled
        from pillarbox.batch b
        left join pillarbox.delivery d on d.sink = b.sink and d.number = b.number
        left join pillarbox.batch root on root.sink = b.sink and root.number = b.root
        -- A retried dead letter is counted with the dead letters.
        where b.sink = s.sink
            and coalesce(root.kind, b.kind) in ('genesis', 'window')
            and not coalesce(b.root, b.number) <@ judged.numbers
    ) ledger
    cross join lateral (
        select
            pg_catalog.count(*) filter (where l.state in ('dead', 'requested', 'retrying')) as dead,
            pg_catalog.count(*) filter (where l.state = 'dropped') as dropped,
            pg_catalog.count(*) filter (where l.state = 'delivered') as delivered,
            -- The ledger has forgotten the batch, or it was judged again; the letter stays.
            pg_catalog.count(*) filter (
                where about.number is null or about.number <@ judged.numbers
            ) as older,
            -- Delivered once, lost by the sink, and refused when it was to be delivered again.
            pg_catalog.count(*) filter (
                where about.is_repair and not about.number <@ judged.numbers
            ) as repaired
        from pillarbox.dead_letter l
        left join lateral pillarbox.subject(l.sink, l.root) about on true
        -- What was delivered again on request, and refused then, had been delivered.
        where l.sink = s.sink and coalesce(about.kind, 'window') = 'window'
    ) letters
    where s.retired_at is null;
end;

revoke execute on function
    pillarbox.accounting(), pillarbox.subject(integer, bigint),
    pillarbox.count_undone(pg_snapshot, pg_snapshot, xid8, bigint)
    from public;
grant select on pillarbox.dead_letter, pillarbox.replay to pillarbox_relay;
grant insert, update, delete on pillarbox.dead_letter, pillarbox.replay to pillarbox_relay;
grant execute on function
    pillarbox.accounting(), pillarbox.subject(integer, bigint),
    pillarbox.count_undone(pg_snapshot, pg_snapshot, xid8, bigint)
    to pillarbox_relay, pillarbox_reader;
grant select on pillarbox.replay to pillarbox_reader;
grant select (
    dead_letter, sink, number, root, tx, id, event_id, event_type, event_date_time, environment,
    metadata_version, trace_parent, published_at, code, column_name, reason, dead_at, state,
    retry_number, decided_at, decided_by, decided_reason
) on pillarbox.dead_letter to pillarbox_reader;

insert into pillarbox.schema_version (version) values (2);
reset role;

-- 09_recovery
-- Version 2: outboxes that were recovered. Takes no lock that a publisher could wait for.

set local role pillarbox_owner;

-- The sink's last genesis. What the ledger has before it speaks of another life of the database: its
-- snapshots may be of other transaction ids.
alter table pillarbox.sink add column genesis bigint not null default 0;

-- 'recovered': the batch was open when the outbox was recovered; its events that the sink did not
-- hold were published again.
alter table pillarbox.delivery
    drop constraint outcome_is_known,
    add constraint outcome_is_known
        check (outcome in ('delivered', 'split', 'dead', 'dropped', 'recovered'));

-- A position is never taken from before the genesis, and what was open there is settled.
alter function pillarbox.safe_position(integer, timestamptz, bigint) rename to safe_position_of_all;

create function pillarbox.safe_position(sink integer, as_of timestamptz, known_safe bigint)
    returns table (
        number bigint, from_snapshot pg_snapshot, to_snapshot pg_snapshot, until_tx xid8,
        until_id bigint
    )
    language sql stable
begin atomic
    select p.number, p.from_snapshot, p.to_snapshot, p.until_tx, p.until_id
    from pillarbox.sink s
    cross join lateral pillarbox.safe_position_of_all(
        s.sink, safe_position.as_of, greatest(safe_position.known_safe, s.genesis)
    ) p
    where s.sink = safe_position.sink;
end;

grant execute on function pillarbox.safe_position(integer, timestamptz, bigint)
    to pillarbox_relay, pillarbox_reader;

reset role;

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
