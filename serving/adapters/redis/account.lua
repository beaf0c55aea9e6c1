-- What the scripts share that touch an API key's account, whose hash is KEYS[1]; see keyspace.py for its fields.
-- All numbers are whole and below 2^53, so that Lua's doubles are exact.

local UNITS_PER_TOKEN = 60000000
local KEPT_SECONDS = 93 * 86400 -- of an idle key: the month's count and the one before it outlive it

-- Every number that is stored goes through here: left to Redis, 300000000 may become 3e+8 (7.2.0 to 7.2.4 do
-- that), which HINCRBY does not take. For what was stored so, nothing here counts on with HINCRBY either.
local function whole(number)
    return string.format('%.0f', number)
end

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

-- Looks through all leases at those that last, and at those that do not, or are `also`, a field. Returns how many
-- last and when the first of them lapses, nil where there is none; the fields of the others; what those have
-- charged, by month; and the whole account.
local function sorted_leases(now, also)
    local open, lapses_at, ended, charged, account = 0, nil, {}, {}, {}
    local fields = redis.call('HGETALL', KEYS[1])
    for n = 1, #fields, 2 do
        account[fields[n]] = fields[n + 1]
        if string.sub(fields[n], 1, 6) == 'lease:' then
            local since, microseconds, pictures, month = read_lease(fields[n + 1])
            if fields[n] ~= also and lasts(now, since, microseconds) then
                open = open + 1
                lapses_at = math.min(lapses_at or math.huge, since + microseconds)
            else
                ended[#ended + 1] = fields[n]
                charged[month] = (charged[month] or 0) + pictures
            end
        end
    end
    return open, lapses_at, ended, charged, account
end

-- Whether leases have to be looked through. Until the first can have lapsed none has, but where the clock has
-- stepped back.
local function may_have_lapsed(now, lapses_at, filled_at)
    return lapses_at and (now >= lapses_at or now < filled_at)
end

-- Gives lapsed leases back to the quota, and `also`, a field, if that is one. Their tokens stay spent: nobody
-- knows whether their requests ran. Returns how many leases are left, when the first of them lapses, and the
-- pictures given back, by month.
local function sweep(now, also)
    local open, lapses_at, ended, charged, account = sorted_leases(now, also)
    local changes = {'open', whole(open)}
    if lapses_at then
        changes[3], changes[4] = 'lapses_at', whole(lapses_at)
    end
    for month, pictures in pairs(charged) do
        changes[#changes + 1] = 'used:' .. month
        changes[#changes + 1] = whole((account['used:' .. month] or 0) - pictures)
    end
    redis.call('HSET', KEYS[1], unpack(changes)) -- first, for a Redis that is full refuses it
    for _, lease in ipairs(ended) do
        redis.call('HDEL', KEYS[1], lease)
    end
    if not lapses_at then
        redis.call('HDEL', KEYS[1], 'lapses_at')
    end
    redis.call('EXPIRE', KEYS[1], KEPT_SECONDS)
    return open, lapses_at, charged
end

-- Leaves charged what is billed of a lease, and gives the rest back, with its tokens unless it has lapsed: what
-- overfills the bucket spills when it is next looked at. Returns what does so, and cannot fail any more, or nil
-- where there is no such lease.
local function lease_end(request_id, billed_pictures, billed_month)
    local lease = 'lease:' .. request_id
    local text = redis.call('HGET', KEYS[1], lease)
    if not text then
        return nil
    end
    local since, microseconds, pictures, month = read_lease(text)
    billed_month = billed_month or month
    local account = redis.call('HMGET', KEYS[1], 'open', 'level', 'used:' .. month, 'used:' .. billed_month)
    local changes = {'open', whole((account[1] or 1) - 1)}
    local function add(field, before, number)
        changes[#changes + 1] = field
        changes[#changes + 1] = whole((before or 0) + number)
    end

    local spare = pictures - billed_pictures
    if spare ~= 0 and lasts(now_microseconds(), since, microseconds) then
        add('level', account[2], spare * UNITS_PER_TOKEN)
    end
    if month ~= billed_month then
        add('used:' .. month, account[3], -pictures)
        add('used:' .. billed_month, account[4], billed_pictures)
    elseif spare ~= 0 then
        add('used:' .. month, account[3], -spare)
    end
    return function()
        redis.call('HDEL', KEYS[1], lease) -- first, for it makes room where Redis is full
        redis.call('HSET', KEYS[1], unpack(changes))
    end
end
