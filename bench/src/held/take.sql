select q.id, q.event_type, q.event_date_time::text, q.environment, q.event_context::text, q.metadata_version
from public.queue q
order by q.id
limit 1000
for update skip locked
