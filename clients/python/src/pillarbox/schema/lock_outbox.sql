set local lock_timeout = '5s';
lock table pillarbox.event in access exclusive mode
