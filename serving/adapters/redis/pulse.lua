-- How a partition is: whether it takes writes, whether it is still the one we know, how far the ledger has got.
--
-- KEYS  epoch, stream
--
-- Answers: now, in microseconds; the epoch, '' for none; the id of the server's run, which is another after a
-- restart or a failover; the id of the first entry that waits for the ledger, and whether there is one: where
-- none waits, the id of the last one that there was.

-- Writes nothing, but a server that is read-only, full or cannot write to its disk refuses it all the same.
redis.call('SETRANGE', KEYS[1], 0, '')

local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
local first, last_id = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1], '0-0'
if not first then
    local facts = redis.pcall('XINFO', 'STREAM', KEYS[2])
    for at = 1, #facts, 2 do
        if facts[at] == 'last-generated-id' then last_id = facts[at + 1] end
    end
end
return {
    string.format('%.0f', now_microseconds()),
    redis.call('GET', KEYS[1]) or '',
    run_id,
    first and first[1] or last_id,
    first and 1 or 0,
}
