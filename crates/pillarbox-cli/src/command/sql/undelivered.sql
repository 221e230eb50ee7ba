-- For each sink that was not retired: how many events are not done at its safe position, counted up
-- to $1 of them.
select
    s.name,
    (
        select pg_catalog.count(*)
        from (
            select
            from pillarbox.undone(
                safe.from_snapshot, safe.to_snapshot, safe.until_tx, safe.until_id
            )
            limit $1
        ) u
    )
from pillarbox.sink s
cross join lateral pillarbox.safe_position(s.sink, pg_catalog.clock_timestamp(), 0) safe
where s.retired_at is null
order by s.name
