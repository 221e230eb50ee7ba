update pillarbox.intake_letter set bytes = $2 where dead_letter = $1
