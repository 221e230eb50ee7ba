insert into pillarbox.intake (name, kind, source)
values ($1, $2, $3)
on conflict (name) do nothing
