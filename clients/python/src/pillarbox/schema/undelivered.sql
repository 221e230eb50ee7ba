select
    s.name,
    (
        select pg_catalog.count(*)
        from (
            select
            from pillarbox.undone(
                safe.from_snapshot, safe.to_snapshot, safe.until_tx, safe.until_id
            )
            limit %s
        ) u
    )
from pillarbox.sink s
cross join lateral pillarbox.safe_position(s.sink, pg_catalog.clock_timestamp(), 0) safe
where s.retired_at is null
order by s.name
