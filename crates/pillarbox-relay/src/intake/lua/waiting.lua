-- KEYS[1]: a stream or a list. Gives {entries, ms since the oldest was added or -1, the greatest id}.
local kind = redis.call('TYPE', KEYS[1]).ok
if kind == 'none' then return {0, -1, ''} end
if kind == 'list' then return {redis.call('LLEN', KEYS[1]), -1, ''} end
local info, last = redis.call('XINFO', 'STREAM', KEYS[1]), ''
for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then last = info[i + 1] end
end
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)
local age = -1
if #first > 0 then
    local now = redis.call('TIME')
    age = now[1] * 1000 + math.floor(now[2] / 1000) - tonumber(string.match(first[1][1], '^%d+'))
end
return {redis.call('XLEN', KEYS[1]), math.max(age, 0), last}
