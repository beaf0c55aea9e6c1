-- Turns a request's lease into an entry of the usage stream, or charges it anew where the lease is gone.
--
-- KEYS  account, usage stream, epoch, and answer and kept answers where the client named an idempotency key
-- ARGV  request id, month, pictures, event, and with an answer: '1' where only the owner of the idempotency
--       key may settle, fingerprint, the answer, how long it is kept in microseconds, how many bytes a key's
--       answers may take
--
-- Returns {'appended', epoch, id in the stream}, {'superseded'} where another request has taken the
-- idempotency key over, or {'unprimed'}.

local HOUR = 3600000000
local RECORD_BYTES = 512 -- of an answer, beside the answer itself

local epoch = redis.call('GET', KEYS[3])
if not epoch then
    return {'unprimed'}
end
local pictures, used = tonumber(ARGV[3]), 'used:' .. ARGV[2]

-- Returns what keeps the answer where there is room, and else that there was one.
local function answer_keeping(now)
    local bytes, taken, over = #ARGV[7] + RECORD_BYTES, 0, {}
    local hours = redis.call('HGETALL', KEYS[5])
    for n = 1, #hours, 2 do
        if tonumber(hours[n]) < math.floor(now / HOUR) then
            over[#over + 1] = hours[n]
        else
            taken = taken + hours[n + 1]
        end
    end
    return function()
        local has_room = taken + bytes <= tonumber(ARGV[9])
        redis.call('DEL', KEYS[4])
        redis.call('HSET', KEYS[4], 'owner', ARGV[1], 'fingerprint', ARGV[6], 'since', whole(now),
            'microseconds', ARGV[8], has_room and 'answer' or 'not_kept', has_room and ARGV[7] or '1')
        redis.call('PEXPIRE', KEYS[4], whole(ARGV[8] / 1000))
        if #over > 0 then
            redis.call('HDEL', KEYS[5], unpack(over))
        end
        if has_room then
            redis.call('HINCRBY', KEYS[5], whole(math.floor((now + ARGV[8]) / HOUR)), whole(bytes))
            redis.call('PEXPIRE', KEYS[5], whole((ARGV[8] + HOUR) / 1000))
        end
    end
end

local keep_answer
if KEYS[4] then
    local now = now_microseconds()
    local claim = redis.call('HMGET', KEYS[4], 'owner', 'since', 'microseconds', 'answer', 'not_kept')
    local is_taken = claim[1] and lasts(now, claim[2], tonumber(claim[3]))
    if not is_taken or claim[1] == ARGV[1] and not claim[4] and not claim[5] then
        keep_answer = answer_keeping(now)
    elseif claim[1] ~= ARGV[1] and ARGV[5] == '1' then
        return {'superseded'}
    end
end
local end_lease, charged = lease_end(ARGV[1], pictures, ARGV[2]), nil
if not end_lease then
    charged = redis.call('HGET', KEYS[1], used) or 0
end

-- The first to write: a Redis that is full refuses it, and nothing has changed.
local id = redis.call('XADD', KEYS[2], '*', 'e', ARGV[4])
if keep_answer then
    keep_answer()
end
if end_lease then
    end_lease()
else
    redis.call('HSET', KEYS[1], used, whole(charged + pictures))
    redis.call('EXPIRE', KEYS[1], KEPT_SECONDS)
end
return {'appended', epoch, id}
