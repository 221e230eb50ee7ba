begin;
insert into public.app_user (name, email) values ('Ada Lovelace', 'ada@example.org');
insert into pillarbox.event (event_type, event_context) values ('user_created', :context);
commit;
