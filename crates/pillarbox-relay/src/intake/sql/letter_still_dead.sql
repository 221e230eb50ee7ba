update pillarbox.intake_letter set reason = $2 where dead_letter = $1
