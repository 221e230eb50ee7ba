drop schema pillarbox cascade
