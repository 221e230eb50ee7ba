update pillarbox.sink set origin = $2 where sink = $1
