insert into pillarbox.delivery (sink, number, outcome, rows, attempts, server)
values ($1, $2, 'delivered', $3, $4, $5)
on conflict (sink, number) do nothing
