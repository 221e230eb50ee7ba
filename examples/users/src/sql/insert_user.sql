-- Waits for a concurrent transaction with the same email, and gives no row if that commits.
insert into public.users (email, first_name, last_name)
values ($1, $2, $3)
on conflict (email) do nothing
returning
    id, email, first_name, last_name,
    pg_catalog.to_char(created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as created_at
