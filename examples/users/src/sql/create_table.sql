create table if not exists public.users (
    id bigint primary key generated always as identity,
    email text not null unique,
    first_name text not null,
    last_name text not null,
    created_at timestamptz not null default pg_catalog.now()
)
