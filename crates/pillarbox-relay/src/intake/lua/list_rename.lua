-- KEYS[1]: the list, KEYS[2]: its marker. ARGV: the uuid of the chunk to be.
-- Gives {uuid, the chunk before it, 1 when this call has renamed} of the chunk that has to be taken, or
-- nothing. The marker holds the chunk that was renamed last, and the one before it.
local marker = redis.call('GET', KEYS[2])
local uuid, previous = '', ''
if marker then
    uuid, previous = string.match(marker, '^(%S*) ?(%S*)$')
    if uuid == nil then uuid, previous = '', '' end
    if uuid ~= '' and redis.call('EXISTS', KEYS[1] .. ':' .. uuid) == 1 then return {uuid, previous, 0} end
end
local kind = redis.call('TYPE', KEYS[1]).ok
if kind == 'none' then return {} end
if kind ~= 'list' then return redis.error_reply('WRONGTYPE the key is a ' .. kind) end
-- Before SET, which a Redis out of memory refuses as the first write of a script only.
if redis.call('RENAMENX', KEYS[1], KEYS[1] .. ':' .. ARGV[1]) == 0 then
    return redis.error_reply('TRYAGAIN a chunk of that name is there')
end
redis.call('SET', KEYS[2], ARGV[1] .. ' ' .. uuid)
return {ARGV[1], uuid, 1}
