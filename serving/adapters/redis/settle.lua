-- Turns a request's lease into an entry of the usage stream, or charges it anew where the lease is gone.
--
-- KEYS  account, usage stream, epoch, and answer where the client named an idempotency key
-- ARGV  request id, month, pictures, event, and with an answer: '1' where only the owner of the idempotency
--       key may settle, fingerprint, the answer, how long it is kept in microseconds
--
-- Returns {'appended', epoch, id in the stream}, {'superseded'} where another request has taken the
-- idempotency key over, or {'unprimed'}.

local epoch = redis.call('GET', KEYS[3])
if not epoch then
    return {'unprimed'}
end
local pictures = tonumber(ARGV[3])

if KEYS[4] then
    local now = now_microseconds()
    local claim = redis.call('HMGET', KEYS[4], 'owner', 'since', 'microseconds')
    local is_anothers = claim[1] and claim[1] ~= ARGV[1] and lasts(now, claim[2], tonumber(claim[3]))
    if is_anothers and ARGV[5] == '1' then
        return {'superseded'}
    elseif not is_anothers then
        redis.call('HSET', KEYS[4], 'owner', ARGV[1], 'fingerprint', ARGV[6], 'answer', ARGV[7],
            'since', now, 'microseconds', ARGV[8])
        redis.call('PEXPIRE', KEYS[4], ARGV[8] / 1000)
    end
end

if not end_lease(ARGV[1], pictures, ARGV[2]) then
    redis.call('HINCRBY', KEYS[1], 'used:' .. ARGV[2], pictures)
    redis.call('EXPIRE', KEYS[1], KEPT_SECONDS)
end
return {'appended', epoch, redis.call('XADD', KEYS[2], '*', 'e', ARGV[4])}
