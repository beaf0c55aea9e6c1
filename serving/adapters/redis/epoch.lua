-- Whether a partition's counts were taken from the ledger, and which time that was.
--
-- KEYS[1]  epoch
--
-- Answers the epoch, nil for none.

return redis.call('GET', KEYS[1])
