-- Move entries of the side stream back to where they came from, as they came.
--
-- KEYS  side stream, stream
-- ARGV  ids in the side stream
--
-- Answers how many were moved. One that is not there was moved before: asked again, it is not moved again.
-- Each brings the charge with it that it has stood for all the time.

local moved = 0
for _, id in ipairs(ARGV) do
    local found = redis.call('XRANGE', KEYS[1], id, id)[1]
    if found then
        -- In front of what it held is `entry` and its id of then.
        redis.call('XADD', KEYS[2], '*', unpack(found[2], 3))
        redis.call('XDEL', KEYS[1], id)
        moved = moved + 1
    end
end
return moved
