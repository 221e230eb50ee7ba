-- What the outbox is compared with, and the events of the benchmark.
create schema bench;

-- The columns of an event in an ordinary table, compressed as in the outbox.
create table bench.event (
    event_id uuid not null default pg_catalog.gen_random_uuid(),
    event_type text not null,
    event_date_time timestamptz not null default pg_catalog.clock_timestamp(),
    environment text not null default 'production',
    event_context json not null,
    metadata_version bigint not null default 1,
    trace_parent text,
    published_at timestamptz not null default pg_catalog.clock_timestamp()
);
do $$
begin
    alter table bench.event alter column event_context set compression lz4;
exception when feature_not_supported or invalid_parameter_value then
    raise debug 'this server has no lz4: event_context is compressed with pglz';
end
$$;

create function bench.event_type(n bigint) returns text
    language sql immutable
    return (array[
        'user_created', 'user_updated', 'login', 'order_placed', 'report_done', 'logout'
    ])[1 + n % 6];

-- A JSON object of so many bytes, about half of which are chance.
create function bench.context(n bigint, bytes integer) returns json
    language sql immutable
    begin atomic
        select (
            head.text
            || pg_catalog.left(chance.text, greatest(bytes - pg_catalog.length(head.text) - 2, 0))
            || '"}'
        )::json
        from (
            select pg_catalog.format(
                '{"user_id": %s, "email": "user%s@example.org", "path": "/api/v1/users/%s", "trace": "',
                n, n, n
            )
        ) as head (text)
        cross join (
            select pg_catalog.string_agg(
                pg_catalog.encode(
                    pg_catalog.sha256(pg_catalog.convert_to(n || '/' || part, 'UTF8')), 'hex'
                ),
                '' order by part
            )
            from pg_catalog.generate_series(0, bytes / 64) as part
        ) as chance (text);
    end;
