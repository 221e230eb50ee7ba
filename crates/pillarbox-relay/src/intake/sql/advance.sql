-- $2: the position before, $3: the position now. No row when somebody else has moved it.
update pillarbox.intake
set position = $3::text,
    taken = taken + $4::bigint,
    dead = dead + $5::bigint,
    restored = restored + $6::bigint,
    taken_at = pg_catalog.clock_timestamp()
where intake = $1 and position is not distinct from $2::text
