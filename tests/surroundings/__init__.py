"""Device workers in hostile surroundings: signals that are ignored, limits that are low, streams that are closed, odd paths.

`program` is a small real program that kills its own context and says what became of the stream; `cases` are what may
surround it; `driver` runs it there and sees that nothing is left. `python -m tests.surroundings` runs all of them.
"""
