-- A queue table as it is worked off by DELETE. Under a held snapshot vacuum can remove nothing from it:
-- it is off, so that its vain runs disturb no measurement.
create table public.queue (
    id bigserial primary key,
    event_type text not null,
    event_date_time timestamptz not null default pg_catalog.clock_timestamp(),
    environment text not null default 'production',
    event_context json not null,
    metadata_version bigint not null default 1
) with (autovacuum_enabled = off);
