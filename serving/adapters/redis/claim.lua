-- Take over entries that a consumer was handed long ago and has not acknowledged: it has died.
--
-- KEYS[1]  stream
-- ARGV     group; consumer that takes over; idle time in milliseconds; at most so many; id to begin at, as
--          XRANGE takes it
--
-- Answers where to begin the next time, and entries as XRANGE does. XAUTOCLAIM has one more answer on 7 than
-- on 6.2, and on 6.2 what somebody deleted stays pending for ever.

local group, consumer, idle_milliseconds, limit, begin = unpack(ARGV)
local pending = redis.pcall('XPENDING', KEYS[1], group, 'IDLE', idle_milliseconds, begin, '+', limit)
if pending.err then
    if pending.err:find('NOGROUP', 1, true) then return {'-', {}} end
    return pending
end
if #pending == 0 then return {'-', {}} end

local ids, entries, is_there = {}, {}, {}
for at, entry in ipairs(pending) do ids[at] = entry[1] end
for _, entry in ipairs(redis.call('XCLAIM', KEYS[1], group, consumer, 0, unpack(ids))) do
    if entry then
        entries[#entries + 1] = entry
        is_there[entry[1]] = true
    end
end
for _, id in ipairs(ids) do
    if not is_there[id] then redis.call('XACK', KEYS[1], group, id) end
end
return {#pending < tonumber(limit) and '-' or '(' .. ids[#ids], entries}
