"""A runner in an operating system process of its own.

`host` has `ProcessHost`, which a worker opens. `parent` runs in the process of the worker: it starts and reaps processes, logs
their output, and keeps a reserve of them. `child` runs in the context process. Both use the protocol of `wire`. This file
imports nothing, because a context process imports it too.
"""
