-- Sets or clears the pause of a registered sink. No row where it is so already.
update pillarbox.sink set paused = $2
where name = $1 and retired_at is null and paused is distinct from $2
returning sink
