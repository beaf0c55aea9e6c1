-- What is left of a key's limits; nothing is taken, and nothing written.
--
-- KEYS  account, epoch
-- ARGV  rate a minute, burst
--
-- Returns {'ok', now, level, used, leases} or {'unprimed'}.

local MOST_FIELDS = 1000

local rate, capacity = tonumber(ARGV[1]), ARGV[2] * UNITS_PER_TOKEN
local now = now_microseconds()
local month = month_of(now)
local account = redis.call('HMGET', KEYS[1], 'level', 'filled_at', 'used:' .. month, 'open', 'lapses_at')
if not account[2] and redis.call('EXISTS', KEYS[2]) == 0 then
    return {'unprimed'}
end
local used, open = tonumber(account[3] or 0), tonumber(account[4] or 0)
local filled_at = tonumber(account[2] or now)
-- What has lapsed is left to the next admission to give back. Where there is much to look through, that is not
-- done for this: until then, what is said to be left is less than there is.
if may_have_lapsed(now, tonumber(account[5]), filled_at) and redis.call('HLEN', KEYS[1]) <= MOST_FIELDS then
    local lasting, _, _, charged = sorted_leases(now)
    open, used = lasting, used - (charged[month] or 0)
end
return {'ok', now, refilled(tonumber(account[1] or capacity), filled_at, now, rate, capacity), used, open}
