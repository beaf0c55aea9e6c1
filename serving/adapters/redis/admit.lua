-- Takes a token and a picture of the month's quota for each picture, and a lease, all or nothing.
--
-- KEYS  account, epoch, and answer where the client named an idempotency key
-- ARGV  request id, pictures, rate a minute, burst, quota or -1, most leases or -1, lease in microseconds,
--       and with an answer: fingerprint, how long answers are kept in microseconds
--
-- Returns {'admitted' | 'rate' | 'quota' | 'concurrent', now, level, used, leases}, after what was taken,
--         {'answered', answer}, {'in_use', microseconds it may still last}, {'reused'} or {'unprimed'}.

local pictures, rate, capacity = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4] * UNITS_PER_TOKEN
local quota, most_leases, lease_microseconds = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local now = now_microseconds()

if KEYS[3] then
    local claim = redis.call('HMGET', KEYS[3], 'since', 'microseconds', 'fingerprint', 'answer')
    if claim[1] and lasts(now, claim[1], tonumber(claim[2])) then
        if claim[3] ~= ARGV[8] then
            return {'reused'}
        elseif claim[4] then
            return {'answered', claim[4]}
        end
        return {'in_use', claim[1] + claim[2] - now}
    end
end

local month, lease = month_of(now), 'lease:' .. ARGV[1]
local account = redis.call('HMGET', KEYS[1], 'level', 'filled_at', 'used:' .. month, 'open', 'swept_at', lease)
-- A bucket is never older than the epoch.
if not account[2] and redis.call('EXISTS', KEYS[2]) == 0 then
    return {'unprimed'}
end
local level, filled_at = tonumber(account[1] or capacity), tonumber(account[2] or now)
local used, open = tonumber(account[3] or 0), tonumber(account[4] or 0)
if now < filled_at then
    redis.call('HSET', KEYS[1], 'filled_at', now)
end

local function is_over_quota()
    return quota >= 0 and used + pictures > quota
end
local function is_over_concurrency()
    return most_leases >= 0 and open >= most_leases
end

-- A request that asks again gives back what it had reserved the time before.
if account[6] or not account[5] or not lasts(now, account[5], SWEEP_EVERY_MICROSECONDS)
    or open > 0 and (is_over_quota() or is_over_concurrency()) then
    local given_back
    open, given_back = sweep(now, lease)
    used = used - (given_back[month] or 0)
end

level = refilled(level, filled_at, now, rate, capacity)
if is_over_quota() then
    return {'quota', now, level, used, open}
elseif level < pictures * UNITS_PER_TOKEN then
    return {'rate', now, level, used, open}
elseif is_over_concurrency() then
    return {'concurrent', now, level, used, open}
end

level, used, open = level - pictures * UNITS_PER_TOKEN, used + pictures, open + 1
redis.call('HSET', KEYS[1], 'level', level, 'filled_at', now, 'used:' .. month, used, 'open', open,
    lease, string.format('%.0f %.0f %.0f %s', now, lease_microseconds, pictures, month))
if KEYS[3] then
    redis.call('DEL', KEYS[3])
    redis.call('HSET', KEYS[3], 'owner', ARGV[1], 'fingerprint', ARGV[8], 'since', now,
        'microseconds', lease_microseconds)
    redis.call('PEXPIRE', KEYS[3], ARGV[9] / 1000)
end
return {'admitted', now, level, used, open}
