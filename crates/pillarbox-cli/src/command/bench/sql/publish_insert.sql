insert into pillarbox.event (event_type, event_context) values ($1, $2)
