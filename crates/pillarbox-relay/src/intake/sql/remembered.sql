-- $2: the chunk, null for a stream; $3 and $4: from where to where.
select m.low, m.hashes
from pillarbox.intake_memory m
where m.intake = $1
    and m.chunk is not distinct from $2::uuid
    and m.low <= $4::bytea
    and m.high >= $3::bytea
order by m.low
