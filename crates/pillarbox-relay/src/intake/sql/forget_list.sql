-- $2: the seconds that entries are remembered for. The newest chunk stays: Redis names it as the last
-- one. Gives the greatest chunk that is forgotten now.
with forgotten as (
    delete from pillarbox.intake_chunk c
    where c.intake = $1
        and c.is_done
        and c.taken_at < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $2)
        and c.number < (
            select pg_catalog.max(n.number)
            from pillarbox.intake_chunk n
            where n.intake = $1 and n.previous is not null
        )
    returning c.chunk, c.previous
), hashes as (
    delete from pillarbox.intake_memory m
    using forgotten f
    where m.intake = $1 and m.chunk = f.chunk
)
select f.chunk from forgotten f where f.previous is not null order by f.chunk desc limit 1
