-- Forget consumers that have died and left nothing behind.
--
-- KEYS[1]  stream
-- ARGV     group; idle time in milliseconds
--
-- One that is only slow is known again with its next reading. One with pending entries has to stay: they
-- would go with it, and never be handed out again.

local consumers = redis.pcall('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])
if consumers.err then return 0 end

local forgotten = 0
for _, facts in ipairs(consumers) do
    local name, pending, idle_milliseconds = facts[2], facts[4], facts[6]
    if pending == 0 and idle_milliseconds >= tonumber(ARGV[2]) then
        redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], name)
        forgotten = forgotten + 1
    end
end
return forgotten
