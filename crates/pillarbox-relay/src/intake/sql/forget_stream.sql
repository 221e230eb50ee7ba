-- $2: the seconds that entries are remembered for. Gives the greatest id that is forgotten now.
with forgotten as (
    delete from pillarbox.intake_memory m
    where m.intake = $1
        and m.taken_at < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $2)
    returning m.high
)
select f.high from forgotten f order by f.high desc limit 1
