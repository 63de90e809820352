"""Faults that are planted one at a time in what carries decisions out and in the device worker; a test must catch each.

    python -m tests.plants                    every one of them
    python -m tests.plants --only mailbox     those whose name or file has this in it

The machine that decides has its own: every mutant of it, see `tests.mutation`.
"""
