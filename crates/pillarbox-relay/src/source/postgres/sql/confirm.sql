insert into pillarbox.delivery (sink, number, outcome, rows, dead, blocks, attempts, server)
values ($1, $2, $3, $4, $5, $6, $7, $8)
on conflict (sink, number) do nothing
