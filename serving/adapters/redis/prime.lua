-- Open a partition whose counts have been taken from the ledger.
--
-- KEYS  lock, epoch
-- ARGV  token that the lock was taken with; the new epoch
--
-- Answers 1, or 0 where the lock was lost, and with it the right to say so.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2], 'NX')
return 1
