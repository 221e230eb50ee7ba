select pg_catalog.count(*) from (select from pillarbox.event limit $1) e
