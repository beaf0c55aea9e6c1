-- This gateway lives.
--
-- KEYS[1]  gateways by when they were last heard of, in microseconds
-- ARGV     this one's id; microseconds after which one that was not heard of counts no more
--
-- Answers how many there are.

local now = now_microseconds()
redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('(%.0f', now - tonumber(ARGV[2])))
return redis.call('ZCARD', KEYS[1])
