-- Put in front of every script. Tests put another in its place, and move Redis' clock with it.

local function now_microseconds()
    local time = redis.call('TIME')
    return tonumber(time[1]) * 1000000 + tonumber(time[2])
end
