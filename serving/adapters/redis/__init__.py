"""Accounts in Redis: buckets, quotas, leases, kept answers and the stream of usage events.

Where everything lies. `p` is the partition of an API key, so that all that one request touches is in one slot
of a cluster, and one script reads and writes it as a whole:

    vg:{p}:key:<key id>            hash: token bucket, pictures a month, leases of the requests under way
    vg:{p}:answer:<key id>:<hash>  what was answered to an `Idempotency-Key`, for 24 hours
    vg:{p}:answers:<key id>        hash: how much room those take, by the hour in which they lapse
    vg:{p}:usage                   stream: usage events on their way to the ledger; group `ledger`
    vg:{p}:epoch                   made once the counters were taken from the ledger: a Redis without it is
                                   new, or was flushed, and nobody asks it before it is there
    vg:gateways                    sorted set: gateway processes by when they were last heard of
    vg:key-changes                 channel: keys that have changed

One entry of the stream stands for one charge of a month's count. A request's lease is that charge while it is
under way; settling turns it into the entry in one step, or charges anew where the lease is gone. So an event
that is appended twice is charged twice, and the consumer, who finds the second entry by its event id in the
ledger, gives its charge back in the step that removes the entry.
"""
