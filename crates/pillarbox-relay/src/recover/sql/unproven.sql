-- The next events after ($1, $2) that some sink needs as far as its ledger knows. What is published
-- while one looks is none of them: no relay is active, so it is in no sink.
(
    select
        e.tx::text, e.id, e.event_id, e.event_type,
        (extract(epoch from e.event_date_time) * 1000000)::bigint,
        e.pillarbox_needed
    from recover_event e
    where e.tx = $1::text::xid8
        and e.id > $2
        and e.pillarbox_needed <> 0
        and (e.pillarbox_is_copied or e.tx < (select n.tx from recover_next n))
    order by e.id
    limit $3
)
union all
(
    select
        e.tx::text, e.id, e.event_id, e.event_type,
        (extract(epoch from e.event_date_time) * 1000000)::bigint,
        e.pillarbox_needed
    from recover_event e
    where e.tx > $1::text::xid8
        and e.pillarbox_needed <> 0
        and (e.pillarbox_is_copied or e.tx < (select n.tx from recover_next n))
    order by e.tx, e.id
    limit $3
)
limit $3
