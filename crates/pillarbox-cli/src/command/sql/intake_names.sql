select i.name from pillarbox.intake i order by i.name
