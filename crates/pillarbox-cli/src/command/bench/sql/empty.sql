truncate bench.event, pillarbox.event
