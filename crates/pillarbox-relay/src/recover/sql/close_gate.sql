-- As in 02_outbox.sql.
alter table pillarbox.event add constraint tx_is_of_this_transaction
    check (tx = pg_catalog.pg_current_xact_id()) not valid
