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
