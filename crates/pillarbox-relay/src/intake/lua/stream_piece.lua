-- KEYS[1]: the stream. ARGV: an id; from which byte, to which: of the entry as an array of RESP.
local group = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])
if #group == 0 then return redis.error_reply('GONE the entry is not there any more') end
local texts = {}
for i, text in ipairs(group[1][2]) do texts[i] = '$' .. #text .. '\r\n' .. text .. '\r\n' end
local whole = '*' .. #texts .. '\r\n' .. table.concat(texts)
return string.sub(whole, tonumber(ARGV[2]), tonumber(ARGV[3]))
