-- Move counts by what they are off, as long as nobody else may, and unless Redis was flushed since they were
-- seen.
--
-- KEYS       lock, epoch, then hashes of keys
-- ARGV[1]    token that the lock was taken with
-- ARGV[2]    epoch that was seen, '' for none
-- ARGV[3]    milliseconds to hold the lock for from now on
-- ARGV[4 …]  three a correction: which of KEYS; field of the month's count; by how much
--
-- Answers 1, or 0 where nothing was done.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if (redis.call('GET', KEYS[2]) or '') ~= ARGV[2] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
for at = 4, #ARGV, 3 do
    local key = KEYS[tonumber(ARGV[at])]
    redis.call('HINCRBY', key, ARGV[at + 1], ARGV[at + 2])
    redis.call('EXPIRE', key, KEPT_SECONDS)
end
return 1
