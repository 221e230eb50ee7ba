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

create or replace function pillarbox.safe_position(sink integer, as_of timestamptz, known_safe bigint)
    returns table (
        number bigint, from_snapshot pg_snapshot, to_snapshot pg_snapshot, until_tx xid8,
        until_id bigint
    )
    language sql stable
begin atomic
    select b.number, b.from_snapshot, b.to_snapshot, b.until_tx, b.until_id
    from pillarbox.sink s
    join pillarbox.batch b on b.sink = s.sink
    where s.sink = safe_position.sink
        and b.number >= s.genesis
        and b.kind in ('genesis', 'window')
        and b.number < coalesce(
            (
                select o.number
                from pillarbox.batch o
                left join pillarbox.delivery d on d.sink = o.sink and d.number = o.number
                where o.sink = safe_position.sink
                    and o.number > greatest(safe_position.known_safe, s.genesis)
                    and o.kind <> 'genesis'
                    and (d.number is null or d.delivered_at > safe_position.as_of)
                order by o.number
                limit 1
            ),
            1099511627776
        )
    order by b.number desc
    limit 1;
end;

reset role;
