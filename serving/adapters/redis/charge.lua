-- Takes out of buckets what a gateway admitted by itself while it could not ask.
--
-- KEYS  epoch, accounts
-- ARGV  three an account: rate a minute, burst, pictures admitted
--
-- Returns {'charged'} or {'unprimed'}. No bucket is left below empty: what a gateway admits beyond that is
-- within the key's rate, which nobody else could use meanwhile.

if redis.call('EXISTS', KEYS[1]) == 0 then
    return {'unprimed'}
end
local now = now_microseconds()
for n = 2, #KEYS do
    local at = 3 * (n - 2)
    local rate, capacity = tonumber(ARGV[at + 1]), ARGV[at + 2] * UNITS_PER_TOKEN
    local account = redis.call('HMGET', KEYS[n], 'level', 'filled_at')
    local level, filled_at = tonumber(account[1] or capacity), tonumber(account[2] or now)
    level = refilled(level, filled_at, now, rate, capacity) - ARGV[at + 3] * UNITS_PER_TOKEN
    redis.call('HSET', KEYS[n], 'level', math.max(0, level), 'filled_at', now)
    redis.call('EXPIRE', KEYS[n], KEPT_SECONDS)
end
return {'charged'}
