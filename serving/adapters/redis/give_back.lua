-- Undoes what admit.lua did for a request that failed; nothing where that has lapsed, or been settled.
--
-- KEYS  account, and answer where the client named an idempotency key
-- ARGV  request id

local end_lease = lease_end(ARGV[1], 0)
if end_lease then
    end_lease()
end
if KEYS[2] then
    local claim = redis.call('HMGET', KEYS[2], 'owner', 'answer', 'not_kept')
    if claim[1] == ARGV[1] and not claim[2] and not claim[3] then
        redis.call('DEL', KEYS[2])
    end
end
