-- Give a lock back, unless another has it by now.
--
-- KEYS[1]  lock
-- ARGV[1]  token that it was taken with

if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1
