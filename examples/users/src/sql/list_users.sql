select
    id, email, first_name, last_name,
    pg_catalog.to_char(created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as created_at
from public.users
where id > $1
order by id
limit $2
