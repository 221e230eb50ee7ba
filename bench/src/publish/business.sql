begin;
insert into public.app_user (name, email) values ('Ada Lovelace', 'ada@example.org');
commit;
