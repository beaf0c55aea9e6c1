-- What the scripts share that touch an API key's account, whose hash is KEYS[1]; see keyspace.py for its fields.
-- All numbers are whole and below 2^53, so that Lua's doubles are exact.

local UNITS_PER_TOKEN = 60000000
local SWEEP_EVERY_MICROSECONDS = 10000000
local KEPT_SECONDS = 93 * 86400 -- of an idle key: the month's count and the one before it outlive it

-- '2026-11', in UTC. Days are counted in years that begin in March, and so end with the leap day.
local function month_of(microseconds)
    local floor = math.floor
    local days = floor(microseconds / 86400000000) + 719468
    local era = floor(days / 146097)
    local day = days - era * 146097
    local year = floor((day - floor(day / 1460) + floor(day / 36524) - floor(day / 146096)) / 365)
    local day_of_year = day - (365 * year + floor(year / 4) - floor(year / 100))
    local month = floor((5 * day_of_year + 2) / 153) + 3
    if month > 12 then
        year, month = year + 1, month - 12
    end
    return string.format('%04d-%02d', year + era * 400, month)
end

-- A clock that steps back refills nothing; whoever sees it writes down from when on it is refilled.
local function refilled(level, filled_at, now, rate_per_minute, capacity)
    return math.min(capacity, level + math.max(0, now - filled_at) * rate_per_minute)
end

-- Also of a clock that has stepped back far: what began in its future has no other end.
local function lasts(now, since, microseconds)
    return math.abs(now - since) < microseconds
end

local function read_lease(text)
    local since, microseconds, pictures, month = string.match(text, '^(%S+) (%S+) (%S+) (%S+)$')
    return tonumber(since), tonumber(microseconds), tonumber(pictures), month
end

-- Gives lapsed leases back to the quota, and `also`, a field, if that is one. Their tokens stay spent: nobody
-- knows whether their requests ran. Returns how many leases are left, and the pictures given back, by month.
local function sweep(now, also)
    local open, given_back = 0, {}
    local fields = redis.call('HGETALL', KEYS[1])
    for n = 1, #fields, 2 do
        if string.sub(fields[n], 1, 6) == 'lease:' then
            local since, microseconds, pictures, month = read_lease(fields[n + 1])
            if fields[n] ~= also and lasts(now, since, microseconds) then
                open = open + 1
            else
                redis.call('HDEL', KEYS[1], fields[n])
                redis.call('HINCRBY', KEYS[1], 'used:' .. month, -pictures)
                given_back[month] = (given_back[month] or 0) + pictures
            end
        end
    end
    redis.call('HSET', KEYS[1], 'open', open, 'swept_at', now)
    redis.call('EXPIRE', KEYS[1], KEPT_SECONDS)
    return open, given_back
end

-- Leaves charged what is billed of a lease, and gives the rest back, with its tokens unless it has lapsed: what
-- overfills the bucket spills when it is next looked at. Returns false where there is no such lease.
local function end_lease(request_id, billed_pictures, billed_month)
    local text = redis.call('HGET', KEYS[1], 'lease:' .. request_id)
    if not text then
        return false
    end
    local since, microseconds, pictures, month = read_lease(text)
    billed_month = billed_month or month
    redis.call('HDEL', KEYS[1], 'lease:' .. request_id)
    redis.call('HINCRBY', KEYS[1], 'open', -1)
    local spare = pictures - billed_pictures
    if spare ~= 0 and lasts(now_microseconds(), since, microseconds) then
        redis.call('HINCRBY', KEYS[1], 'level', spare * UNITS_PER_TOKEN)
    end
    if month ~= billed_month then
        redis.call('HINCRBY', KEYS[1], 'used:' .. month, -pictures)
        redis.call('HINCRBY', KEYS[1], 'used:' .. billed_month, billed_pictures)
    elseif spare ~= 0 then
        redis.call('HINCRBY', KEYS[1], 'used:' .. month, -spare)
    end
    return true
end
