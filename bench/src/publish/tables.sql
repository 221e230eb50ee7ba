-- What the contenders write beside the outbox. Large contexts are compressed as in the outbox, so that
-- no contender pays for another method.
do $$
begin
    create user app;
exception when duplicate_object then
    raise debug 'app was made for another database of the server';
end
$$;
grant pillarbox_publisher to app;

create table public.app_user (
    id bigint generated always as identity primary key,
    name text not null,
    email text not null,
    created_at timestamptz not null default pg_catalog.clock_timestamp()
);

create table public.heap_event (
    event_type text not null,
    event_date_time timestamptz not null,
    environment text not null,
    event_context json compression lz4 not null,
    metadata_version bigint not null,
    published_at timestamptz not null default pg_catalog.clock_timestamp()
);

create table public.notify_event (like public.heap_event including all);

create table public.queue_event (
    id bigserial primary key,
    like public.heap_event including all,
    sent boolean not null default false
);
create index queue_event_sent on public.queue_event (sent, id);

grant insert, select on public.app_user, public.heap_event, public.notify_event, public.queue_event to app;
grant usage on sequence public.queue_event_id_seq to app;
