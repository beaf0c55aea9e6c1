-- The next entries of a stream.
--
-- KEYS[1]  stream
-- ARGV     id after which, id until which; at most so many

return redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], ARGV[2], 'COUNT', ARGV[3])
