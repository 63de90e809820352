"""A runner in an operating system process of its own.

`host` is what a worker opens. `parent` has what runs here: births, deaths, output, and what stands ready; `child` what runs
there. Both speak `wire`. A context process imports this package too, so it is empty.
"""
