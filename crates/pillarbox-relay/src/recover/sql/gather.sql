-- The events that some sink needs. What was not judged has been published since, or is proven.
create temporary table recover_kept on commit drop as
    select e.*, coalesce(j.needed, e.pillarbox_needed) as pillarbox_final
    from recover_event e
    left join recover_judged j on j.tx = e.tx and j.id = e.id
    where coalesce(j.needed, e.pillarbox_needed) <> 0
