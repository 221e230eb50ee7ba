-- KEYS[1]: a chunk. ARGV: how many entries were read, from the oldest on; at most so many; and bytes.
-- Gives {entries in it, bytes of one too large to give, {entry, …}}. Producers push at the head.
local key, from = KEYS[1], tonumber(ARGV[1])
local rows_max, bytes_max = tonumber(ARGV[2]), tonumber(ARGV[3])
local length = redis.call('LLEN', key)
local entries, rows, bytes = {}, 0, 0
while rows < rows_max do
    local count = math.min(32, rows_max - rows)
    local group = redis.call('LRANGE', key, -(from + count), -(from + 1))
    if #group == 0 then return {length, 0, entries} end
    for i = #group, 1, -1 do
        local size = #group[i]
        if size > bytes_max and rows == 0 then return {length, size, {}} end
        if bytes + size > bytes_max then return {length, 0, entries} end
        rows, bytes = rows + 1, bytes + size
        entries[rows] = group[i]
    end
    from = from + #group
    if from >= length then break end
end
return {length, 0, entries}
