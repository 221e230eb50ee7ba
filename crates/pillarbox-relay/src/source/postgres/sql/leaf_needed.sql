-- Whether leaf {slot} holds an event that some registered sink still needs, or there is no sink at
-- all. $1, $2: sinks and the numbers up to which they are known to be safe.
select
    not exists (select from pillarbox.sink s where s.retired_at is null)
    or exists (
        select
        from pillarbox.sink s
        left join unnest($1::integer[], $2::bigint[]) as known (sink, number)
            on known.sink = s.sink
        cross join pillarbox.settings settings
        left join lateral pillarbox.safe_position(
            s.sink, pg_catalog.clock_timestamp() - settings.retention, coalesce(known.number, 0)
        ) p on true
        where s.retired_at is null
            and (
                -- The ledger does not reach back to a batch that was safe by then.
                p.number is null
                or exists (
                    select
                    from pillarbox.undone(
                        p.from_snapshot, p.to_snapshot, p.until_tx, p.until_id
                    ) u
                    where u.slot = {slot}
                )
            )
    )
    or exists (
        select
        from pillarbox.sink s
        join pillarbox.open_batch o on o.sink = s.sink
        left join unnest($1::integer[], $2::bigint[]) as known (sink, number)
            on known.sink = s.sink
        cross join lateral pillarbox.undone(o.from_snapshot, o.from_snapshot, null, null) u
        where s.retired_at is null
            and o.number > coalesce(known.number, 0)
            and u.slot = {slot}
    )
