-- The oldest wish for a replay at sink $1, with the batch as `unfinished.sql` has it, and the events of
-- its family, or of the repairs of that, that were set aside, whatever became of them since. None of before
-- the genesis: its snapshots may be of other ids.
select
    b.number, b.batch_id, b.origin, b.kind, b.from_snapshot::text, b.to_snapshot::text,
    b.after_tx::text, b.after_id, b.until_tx::text, b.until_id, b.rows, b.bytes, b.digest,
    b.blocks::text, b.sealed_at, b.parent, b.root, b.selection::text, b.terms::text,
    r.replay, r.kind, r.parent, r.only_partition,
    (extract(epoch from r.since) * 1000000)::bigint, (extract(epoch from r.until) * 1000000)::bigint,
    dead.txs, dead.ids
from pillarbox.replay r
left join pillarbox.batch b
    on b.sink = r.sink
    and b.number = r.parent
    and b.number > (select s.genesis from pillarbox.sink s where s.sink = r.sink)
cross join lateral (
    -- A child has the batch as its parent that was split, a repair the one that was lost.
    with recursive about (number) as (
        select family.number from pillarbox.subject(r.sink, r.parent) family
        union
        select b.number
        from about
        join pillarbox.batch b on b.sink = r.sink and b.parent = about.number
        where b.kind in ('child', 'repair')
    )
    select
        coalesce(pg_catalog.array_agg(l.tx::text order by l.tx, l.id), '{}') as txs,
        coalesce(pg_catalog.array_agg(l.id order by l.tx, l.id), '{}') as ids
    from pillarbox.dead_letter l
    where l.sink = r.sink
        and (
            l.root in (select about.number from about)
            or l.number in (select about.number from about)
        )
) dead
where r.sink = $1 and r.answered_at is null
order by r.replay
limit 1
