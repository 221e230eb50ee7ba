-- Roles. They belong to the cluster, not to the database: another database may have made them, or be
-- making them at this moment. A member of pillarbox_owner manages everything below.
do $$
declare
    wanted text;
    -- From 16 on, who creates a role is its member without the right to act as it.
    acting constant text := case
        when pg_catalog.current_setting('server_version_num')::integer >= 160000 then 'set'
        else 'member'
    end;
begin
    foreach wanted in array array[
        'pillarbox_owner', 'pillarbox_publisher', 'pillarbox_relay', 'pillarbox_reader'
    ] loop
        if not exists (select from pg_catalog.pg_roles r where r.rolname = wanted) then
            begin
                execute pg_catalog.format('create role %I nologin', wanted);
            exception when duplicate_object or unique_violation then
                null;
            end;
        end if;
    end loop;
    if not pg_catalog.pg_has_role(current_user, 'pillarbox_owner', acting) then
        execute pg_catalog.format('grant pillarbox_owner to %I', current_user);
    end if;
end
$$;

create schema pillarbox authorization pillarbox_owner;
set local role pillarbox_owner;
-- Not "in schema": that could only add to what PUBLIC has by default.
alter default privileges for role pillarbox_owner revoke execute on functions from public;

create table pillarbox.schema_version (
    version integer primary key,
    installed_at timestamptz not null default pg_catalog.clock_timestamp()
);
