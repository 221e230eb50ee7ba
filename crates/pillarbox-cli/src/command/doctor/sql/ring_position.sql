-- On which leaf the ring stands, null before any; whether nextval cannot move it.
select
    (select case when p.is_called then p.last_value end from pillarbox.ring_position p),
    exists (
        select
        from pg_catalog.pg_sequence s
        where s.seqrelid = 'pillarbox.ring_position'::regclass
            and s.seqincrement = 4 and s.seqmin = 0 and s.seqmax = 3 and not s.seqcycle
    )
