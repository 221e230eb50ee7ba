update pillarbox.intake set forgotten = $2 where intake = $1
