"""From the Redis stream to the ledger: what moves usage events, and what checks that nothing was lost.

consumer   stream → ledger → acknowledge, as often as it takes
drift      by how much a key's count of the month is off what ledger, stream and leases say
priming    a Redis that is new, or was flushed, gets its counts from the ledger before anybody asks it
recount    counts set by what they are off; suspects: those of the consumer, beside the events that move on
reconcile  all of it compared, said in one line, and put right
"""
