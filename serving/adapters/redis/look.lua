-- The counts of some keys of a partition, and the stream beside them, as of one moment.
--
-- KEYS     epoch, stream, then hashes of keys
-- ARGV[1]  at most so many entries of the stream
--
-- Answers the epoch; the id of the last entry that was ever appended; the first entries; each hash.

local facts, last_id = redis.pcall('XINFO', 'STREAM', KEYS[2]), '0-0'
for at = 1, #facts, 2 do
    if facts[at] == 'last-generated-id' then last_id = facts[at + 1] end
end
local entries = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', ARGV[1])
local hashes = {}
for at = 3, #KEYS do hashes[#hashes + 1] = redis.call('HGETALL', KEYS[at]) end
return {redis.call('GET', KEYS[1]), last_id, entries, hashes}
