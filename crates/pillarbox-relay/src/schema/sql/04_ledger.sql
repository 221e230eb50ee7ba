-- The ledger: which sinks there are, which batches were sealed for them, and what became of each.
-- pillarbox.batch and pillarbox.delivery are append-only.

create table pillarbox.sink (
    sink integer primary key generated always as identity,
    name text not null unique
        constraint name_is_a_word check (name ~ '^[a-z][a-z0-9_-]{0,31}$'),
    fingerprint text not null,
    -- Above the batch number in the sink's column `batch`: no two sources, streams or lives of a
    -- database share a number.
    origin integer not null
        constraint origin_has_23_bits check (origin between 1 and 8388607),
    -- Where it was registered: a copy of the database must not deliver beside its original.
    system_identifier bigint not null,
    database oid not null,
    paused boolean not null default false,
    stopped_at timestamptz,
    stopped_reason text,
    registered_at timestamptz not null default pg_catalog.clock_timestamp(),
    retired_at timestamptz
);

create table pillarbox.batch (
    sink integer not null references pillarbox.sink,
    number bigint not null constraint number_has_40_bits check (number between 0 and 1099511627775),
    batch_id uuid not null unique,
    origin integer not null,
    kind text not null
        constraint kind_is_known
        check (kind in ('genesis', 'window', 'child', 'replay', 'repair')),
    parent bigint,
    from_snapshot pg_snapshot not null,
    to_snapshot pg_snapshot not null,
    after_tx xid8,
    after_id bigint,
    until_tx xid8,
    until_id bigint,
    rows bigint not null,
    bytes bigint not null,
    -- The digest's 64 bits as a signed number.
    digest bigint not null,
    -- [{"partition": text, "rows": number, "digest": hex, "is_numbered": boolean}]; the ordinal of a
    -- block is its index; a numbered one carries the batch number in its rows.
    blocks jsonb not null,
    min_time timestamptz,
    max_time timestamptz,
    timeline integer not null,
    sealed_at timestamptz not null default pg_catalog.clock_timestamp(),
    relay text not null,
    primary key (sink, number),
    constraint cuts_are_whole check (
        (after_tx is null) = (after_id is null) and (until_tx is null) = (until_id is null)
    )
);

create table pillarbox.delivery (
    sink integer not null,
    number bigint not null,
    outcome text not null
        constraint outcome_is_known check (outcome in ('delivered', 'split', 'dead', 'dropped')),
    rows bigint not null,
    dead bigint not null default 0,
    attempts integer not null,
    server text not null,
    delivered_at timestamptz not null default pg_catalog.clock_timestamp(),
    primary key (sink, number),
    foreign key (sink, number) references pillarbox.batch
);

create table pillarbox.settings (
    singleton boolean primary key default true constraint there_is_one_row check (singleton),
    retention interval not null default '1 hour'
        constraint retention_is_not_negative check (retention >= interval '0'),
    ledger_retention interval not null default '30 days'
        constraint ledger_retention_is_not_negative check (ledger_retention >= interval '0'),
    leaf_bytes_max bigint not null default 268435456
        constraint leaf_bytes_max_is_positive check (leaf_bytes_max > 0),
    leaf_age_max interval not null default '10 minutes'
        constraint leaf_age_max_is_positive check (leaf_age_max > interval '0'),
    -- What is retained is counted from the ledger.
    constraint ledger_retention_is_not_below_retention check (ledger_retention >= retention)
);
insert into pillarbox.settings default values;

-- The history that this server is on; it changes when a standby is promoted.
create function pillarbox.timeline() returns integer
    language sql stable
    return ('x' || pg_catalog.substr(
        pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8
    ))::bit(32)::integer;
