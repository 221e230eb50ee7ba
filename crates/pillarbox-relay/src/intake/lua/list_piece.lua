-- KEYS[1]: a chunk. ARGV: the place of an entry, from the oldest on; from which byte, to which.
local entry = redis.call('LINDEX', KEYS[1], -(tonumber(ARGV[1]) + 1))
if not entry then return redis.error_reply('GONE the entry is not there any more') end
return string.sub(entry, tonumber(ARGV[2]), tonumber(ARGV[3]))
