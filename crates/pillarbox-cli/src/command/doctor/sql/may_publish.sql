-- Whether the current user can do what an intake does beyond a relay.
select pg_catalog.has_column_privilege('pillarbox.event', 'event_context', 'insert')
    and pg_catalog.has_table_privilege('pillarbox.intake', 'insert')
