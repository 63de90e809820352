"""The same work for each contender: one file per library, or floor, that can do it.

An adapter is a module with any of these functions; a missing one means that the library does not offer that work:

    start_stop(n)            start_s, stop_s, kb_per_child    of n idle children under one supervisor
    storm(n)                 per_s                            of n restarts of one leaf that fails at once
    latency(siblings, n)     p50_s, p99_s                     from n crashes to running again, among siblings
    group(n)                 s                                of the restart of a group of n, from the crash to the last one up
    call(n, callers)         per_s                            of n requests to one server and their replies
    send(n)                  per_s                            of n messages without a reply, until all have been taken
    send_many(n)             per_s                            the same, taken several at a time
    deep(depth)              s                                from a failure below nested supervisors to the root's end
    deep_limit(depth)        s                                the same where no supervisor allows a restart

Each runs its own event loop and returns a dict. `benchmarks.work` has their shared tools.
"""
