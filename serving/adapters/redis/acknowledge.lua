-- Take out of the stream what the ledger has.
--
-- KEYS[1]    stream
-- KEYS[2 …]  hashes of the keys that duplicates were charged to
-- ARGV[1]    group
-- ARGV[2 …]  four an entry: its id; which of KEYS gets its charge back, 0 for none; the field of the
--            month's count; pictures
--
-- Answers, by entry, 1 where it was there and 0 where it had gone before. A charge goes back only with the
-- entry that stands for it, so whoever asks twice, or after another consumer, gives back nothing.

local removed = {}
for at = 2, #ARGV, 4 do
    local id, hash = ARGV[at], tonumber(ARGV[at + 1])
    redis.call('XACK', KEYS[1], ARGV[1], id)
    local was_there = redis.call('XDEL', KEYS[1], id)
    if was_there == 1 and hash > 0 then
        redis.call('HINCRBY', KEYS[hash], ARGV[at + 2], -tonumber(ARGV[at + 3]))
    end
    removed[#removed + 1] = was_there
end
return removed
