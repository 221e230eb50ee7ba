-- $1: the intake; element n of each other array belongs to entry n.
with given as (
    select pg_catalog.nextval('pillarbox.dead_letter_dead_letter_seq') as dead_letter, g.*
    from rows from (
        pg_catalog.unnest($2::text[]),
        pg_catalog.unnest($3::text[]),
        pg_catalog.unnest($4::text[]),
        pg_catalog.unnest($5::text[]),
        pg_catalog.unnest($6::bytea[])
    ) as g (place, format, code, reason, entry)
), letters as (
    insert into pillarbox.intake_letter (
        dead_letter, intake, place, format, bytes, code, reason
    )
    select
        g.dead_letter, $1::integer, g.place, g.format, pg_catalog.octet_length(g.entry), g.code,
        g.reason
    from given g
)
insert into pillarbox.intake_letter_piece (dead_letter, piece, entry)
select g.dead_letter, 0, g.entry
from given g
