-- What the scripts share that look up what a client's idempotency key stands for, after account.lua.

-- Returns nothing where that is free, {'answered', answer}, {'not_kept'} where there was one and no room for
-- it, {'in_use', microseconds it may still last} or {'reused'}, where it came with another request.
local function claimed(key, fingerprint, now)
    local claim = redis.call('HMGET', key, 'since', 'microseconds', 'fingerprint', 'answer', 'not_kept')
    if not claim[1] or not lasts(now, claim[1], tonumber(claim[2])) then
        return nil
    elseif claim[3] ~= fingerprint then
        return {'reused'}
    elseif claim[4] then
        return {'answered', claim[4]}
    elseif claim[5] then
        return {'not_kept'}
    end
    return {'in_use', claim[1] + claim[2] - now}
end
