-- Asks for batches $2 of sink $1, or for every batch that may hold events between $3 and $4 and whose
-- events the outbox may still hold.
insert into pillarbox.replay (sink, kind, parent, since, until)
select b.sink, 'replay', b.number, $3::timestamptz, $4::timestamptz
from pillarbox.batch b
join pillarbox.delivery d on d.sink = b.sink and d.number = b.number
where b.sink = $1
    and b.kind in ('window', 'retry')
    and (
        b.number = any ($2::bigint[])
        or (
            $3::timestamptz is not null
            and pg_catalog.pg_snapshot_xmax(b.to_snapshot)
                > (select e.tx from pillarbox.event e order by e.tx limit 1)
        )
    )
order by b.number
