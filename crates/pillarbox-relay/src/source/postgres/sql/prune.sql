-- Ledger rows past their retention, never from the safe position $2 on.
with old as (
    select b.number
    from pillarbox.batch b, pillarbox.settings s
    where b.sink = $1 and b.number < $2
        and b.sealed_at < pg_catalog.clock_timestamp() - s.ledger_retention
    order by b.number
    limit 5000
), forgotten as (
    delete from pillarbox.delivery d using old where d.sink = $1 and d.number = old.number
)
delete from pillarbox.batch b using old where b.sink = $1 and b.number = old.number
