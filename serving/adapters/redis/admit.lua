-- Takes a token and a picture of the month's quota for each picture, and a lease, all or nothing.
--
-- KEYS  account, epoch, and answer where the client named an idempotency key
-- ARGV  request id, pictures, rate a minute, burst, quota or -1, most leases or -1, lease in microseconds,
--       and with an answer: fingerprint, how long answers are kept in microseconds
--
-- Returns {'admitted' | 'rate' | 'quota' | 'concurrent', now, level, used, leases}, after what was taken,
--         what an idempotency key stands for, as answers.lua says it, or {'unprimed'}.

local pictures, rate, capacity = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4] * UNITS_PER_TOKEN
local quota, most_leases, lease_microseconds = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local now = now_microseconds()

if KEYS[3] then
    local reply = claimed(KEYS[3], ARGV[8], now)
    if reply then
        return reply
    end
end

local month, lease = month_of(now), 'lease:' .. ARGV[1]
local account = redis.call('HMGET', KEYS[1], 'level', 'filled_at', 'used:' .. month, 'open', 'lapses_at', lease)
-- A bucket is never older than the epoch.
if not account[2] and redis.call('EXISTS', KEYS[2]) == 0 then
    return {'unprimed'}
end
local level, filled_at = tonumber(account[1] or capacity), tonumber(account[2] or now)
local used, open, lapses_at = tonumber(account[3] or 0), tonumber(account[4] or 0), tonumber(account[5])
if now < filled_at then
    redis.call('HSET', KEYS[1], 'filled_at', whole(now))
end
-- A request that asks again gives back what it had reserved the time before.
if account[6] or may_have_lapsed(now, lapses_at, filled_at) then
    local given_back
    open, lapses_at, given_back = sweep(now, lease)
    used = used - (given_back[month] or 0)
end

-- A refusal writes nothing, however many there are.
level = refilled(level, filled_at, now, rate, capacity)
if quota >= 0 and used + pictures > quota then
    return {'quota', now, level, used, open}
elseif level < pictures * UNITS_PER_TOKEN then
    return {'rate', now, level, used, open}
elseif most_leases >= 0 and open >= most_leases then
    return {'concurrent', now, level, used, open}
end

level, used, open = level - pictures * UNITS_PER_TOKEN, used + pictures, open + 1
lapses_at = math.min(lapses_at or math.huge, now + lease_microseconds)
redis.call('HSET', KEYS[1], 'level', whole(level), 'filled_at', whole(now), 'used:' .. month, whole(used),
    'open', whole(open), 'lapses_at', whole(lapses_at),
    lease, string.format('%.0f %.0f %.0f %s', now, lease_microseconds, pictures, month))
if not account[5] then
    redis.call('EXPIRE', KEYS[1], KEPT_SECONDS)
end
if KEYS[3] then
    redis.call('DEL', KEYS[3])
    redis.call('HSET', KEYS[3], 'owner', ARGV[1], 'fingerprint', ARGV[8], 'since', whole(now),
        'microseconds', whole(lease_microseconds))
    redis.call('PEXPIRE', KEYS[3], whole(ARGV[9] / 1000))
end
return {'admitted', now, level, used, open}
