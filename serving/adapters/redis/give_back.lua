-- Undoes what admit.lua did for a request that failed; nothing where that has lapsed, or been settled.
--
-- KEYS  account, and answer where the client named an idempotency key
-- ARGV  request id

end_lease(ARGV[1], 0)
if KEYS[2] then
    local claim = redis.call('HMGET', KEYS[2], 'owner', 'answer')
    if claim[1] == ARGV[1] and not claim[2] then
        redis.call('DEL', KEYS[2])
    end
end
