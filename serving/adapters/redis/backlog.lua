-- How much of a stream is not acknowledged yet, and how old it is.
--
-- KEYS  stream, side stream
--
-- Answers the entries; the microseconds since the oldest was appended, 0 where there is none; the entries
-- that were set aside.

local oldest, age_microseconds = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1], 0
if oldest then
    age_microseconds = math.max(0, now_microseconds() - tonumber(oldest[1]:match('^%d+')) * 1000)
end
return {redis.call('XLEN', KEYS[1]), age_microseconds, redis.call('XLEN', KEYS[2])}
