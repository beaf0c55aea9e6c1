-- Move entries that nobody can read to a side stream, where an operator finds them as they came.
--
-- KEYS       stream, side stream
-- ARGV[1]    group
-- ARGV[2 …]  ids
--
-- Answers how many were moved. The charge that each stands for stays: nobody can say whose it is.

local moved = 0
for at = 2, #ARGV do
    local id = ARGV[at]
    local found = redis.call('XRANGE', KEYS[1], id, id)[1]
    redis.call('XACK', KEYS[1], ARGV[1], id)
    if found then
        redis.call('XADD', KEYS[2], '*', 'entry', id, unpack(found[2]))
        redis.call('XDEL', KEYS[1], id)
        moved = moved + 1
    end
end
return moved
