begin;
insert into public.app_user (name, email) values ('Ada Lovelace', 'ada@example.org');
insert into public.queue_event (event_type, event_date_time, environment, event_context, metadata_version) values ('user_created', clock_timestamp(), 'production', :context, 1);
commit;
