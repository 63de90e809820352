"""A tree for 1,000 hosts with eight devices each: the real tree of this package under virtual time, in a world of scripted hosts.

`docs/explanation/scale.md` is the page; `python -m benchmarks.scale` runs everything on it.
"""
