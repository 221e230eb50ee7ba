insert into bench.event (event_type, event_context) values ($1, $2)
