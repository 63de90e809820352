"""External programs: small ones in Python, and real servers whose processes are killed.

`servers` declares Redis, PostgreSQL and nginx with data of their own, `parent` runs one of them in a tree, and `campaign`
strikes the program, its workers, its guardian and the parent. `python -m tests.programs --kills 100` is the long form.
"""
