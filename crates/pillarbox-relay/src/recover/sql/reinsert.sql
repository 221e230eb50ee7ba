-- {columns}, {kept}: the columns that an event keeps. Events that the same sinks need get the same tx:
-- that of a transaction that wrote nothing else, so that a genesis can name it as done or not.
insert into pillarbox.event (tx, {columns}) overriding system value
select g.tx, {kept}
from recover_kept k
join recover_group g on g.needed = k.pillarbox_final
order by k.pillarbox_is_copied desc, k.tx, k.id
