-- Which entries are not in the stream: the ledger has them, or they were lost.
--
-- KEYS[1]  stream
-- ARGV     ids

local absent = {}
for _, id in ipairs(ARGV) do
    if #redis.call('XRANGE', KEYS[1], id, id) == 0 then absent[#absent + 1] = id end
end
return absent
