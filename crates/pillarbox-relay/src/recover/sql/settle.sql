-- What the ledger of sink $1 had open, is judged.
insert into pillarbox.delivery (sink, number, outcome, rows, attempts, server)
select o.sink, o.number, 'recovered', 0, 0, 'recovery'
from pillarbox.open_batch o
where o.sink = $1
