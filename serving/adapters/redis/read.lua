-- Hand new entries to a consumer.
--
-- KEYS[1]  stream
-- ARGV     group; consumer; at most so many
--
-- Answers as XRANGE does. Makes the group where it is missing, also after a flush, and from the stream's very
-- beginning, for what was appended before anybody came to read it.

local function read()
    return redis.pcall('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', ARGV[3], 'STREAMS', KEYS[1], '>')
end

local answer = read()
if answer and answer.err and answer.err:find('NOGROUP', 1, true) then
    redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
    answer = read()
end
if not answer then return {} end
if answer.err then return answer end
return answer[1][2]
