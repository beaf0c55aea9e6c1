-- What time it is, in microseconds.

return now_microseconds()
