select pillarbox.publish($1, $2)
