-- What an idempotency key stands for, for a request that is not going to be admitted. Changes nothing.
--
-- KEYS[1]  answer
-- ARGV[1]  fingerprint
--
-- Returns what answers.lua says, or {'free'}.

return claimed(KEYS[1], ARGV[1], now_microseconds()) or {'free'}
