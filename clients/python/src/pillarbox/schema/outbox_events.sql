select pg_catalog.count(*) from (select from pillarbox.event limit %s) e
