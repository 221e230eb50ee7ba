-- KEYS[1]: the stream. ARGV: the greatest id that was taken, or ''; at most so many entries; and bytes.
-- Gives {1 when ids were raised, 1 when the entries are not above the position, bytes of one too large to
-- give, {{id, {field, value, …}}, …}, 1 when there may be more}.
local key, position = KEYS[1], ARGV[1]
local rows_max, bytes_max = tonumber(ARGV[2]), tonumber(ARGV[3])

-- Both parts of an id have 64 bits, which a number of Lua has not: compare digits.
local function parts(id)
    local ms, seq = string.match(id, '^(%d+)-(%d+)$')
    return ms, seq
end

local function less(a, b)
    local a_ms, a_seq = parts(a)
    local b_ms, b_seq = parts(b)
    for _, pair in ipairs({{a_ms, b_ms}, {a_seq, b_seq}}) do
        if #pair[1] ~= #pair[2] then return #pair[1] < #pair[2] end
        if pair[1] ~= pair[2] then return pair[1] < pair[2] end
    end
    return false
end

local function read(from, to)
    local entries, rows, bytes = {}, 0, 0
    while rows < rows_max do
        local group = redis.call('XRANGE', key, from, to, 'COUNT', math.min(32, rows_max - rows))
        if #group == 0 then return entries, 0, 0 end
        for _, entry in ipairs(group) do
            -- A text takes room also when it is empty.
            local size = 0
            for _, text in ipairs(entry[2]) do size = size + #text + 16 end
            if size > bytes_max and rows == 0 then return {{entry[1], {}}}, size, 1 end
            if bytes + size > bytes_max then return entries, 0, 1 end
            rows, bytes = rows + 1, bytes + size
            entries[rows] = entry
            from = '(' .. entry[1]
        end
    end
    return entries, 0, 1
end

local raised = 0
if position ~= '' then
    local last
    if redis.call('EXISTS', key) == 1 then
        local info = redis.call('XINFO', 'STREAM', key)
        for i = 1, #info, 2 do
            if info[i] == 'last-generated-id' then last = info[i + 1] end
        end
    end
    if not last then
        redis.call('XADD', key, position, '-', '-')
        redis.call('XDEL', key, position)
        raised = 1
    elseif less(last, position) then
        redis.call('XSETID', key, position)
        raised = 1
    end
    local entries, large = read('-', position)
    if #entries > 0 then return {raised, 1, large, entries, 1} end
end
local entries, large, more = read(position == '' and '-' or '(' .. position, '+')
return {raised, 0, large, entries, more}
