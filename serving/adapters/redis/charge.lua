-- Takes out of buckets what a gateway admitted by itself while it could not ask.
--
-- KEYS  epoch, accounts
-- ARGV  three an account: rate a minute, burst, pictures admitted
--
-- Returns {'charged', which of the accounts are broken, from 1 on, and were not} or {'unprimed'}. No bucket is left below empty: what a gateway admits beyond that is
-- within the key's rate, which nobody else could use meanwhile.

if redis.call('EXISTS', KEYS[1]) == 0 then
    return {'unprimed'}
end
local now, reply = now_microseconds(), {'charged'}
for n = 2, #KEYS do
    local at = 3 * (n - 2)
    local rate, capacity = tonumber(ARGV[at + 1]), ARGV[at + 2] * UNITS_PER_TOKEN
    local account = redis.pcall('HMGET', KEYS[n], 'level', 'filled_at')
    local level, filled_at = tonumber(account[1] or capacity), tonumber(account[2] or now)
    if account.err or not level or not filled_at then
        reply[#reply + 1] = n - 1
    else
        level = refilled(level, filled_at, now, rate, capacity) - ARGV[at + 3] * UNITS_PER_TOKEN
        redis.call('HSET', KEYS[n], 'level', whole(math.max(0, level)), 'filled_at', whole(now))
        redis.call('EXPIRE', KEYS[n], KEPT_SECONDS)
    end
end
return reply
