-- What is left of a key's limits; nothing is taken.
--
-- KEYS  account, epoch
-- ARGV  rate a minute, burst
--
-- Returns {'ok', now, level, used, leases} or {'unprimed'}.

local rate, capacity = tonumber(ARGV[1]), ARGV[2] * UNITS_PER_TOKEN
local now = now_microseconds()
local month = month_of(now)
local account = redis.call('HMGET', KEYS[1], 'level', 'filled_at', 'used:' .. month, 'open')
if not account[2] and redis.call('EXISTS', KEYS[2]) == 0 then
    return {'unprimed'}
end
local used, open = tonumber(account[3] or 0), tonumber(account[4] or 0)
if open > 0 then
    local given_back
    open, given_back = sweep(now)
    used = used - (given_back[month] or 0)
end
local filled_at = tonumber(account[2] or now)
if now < filled_at then
    redis.call('HSET', KEYS[1], 'filled_at', now)
end
return {'ok', now, refilled(tonumber(account[1] or capacity), filled_at, now, rate, capacity), used, open}
