select a.published, a.pending, a.in_flight, a.delivered, a.dead, a.dropped
from pillarbox.accounting() a
where a.sink = $1
