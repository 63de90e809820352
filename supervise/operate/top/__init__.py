"""`supervise top`: a running tree on a terminal of its own, over the socket of its program. Needs urwid and httpx (extra `top`).

`cells` measures text, `rows` makes the table of nodes, `model` has the state of the program and what each key does to it,
`screens` draws that state as lines of styled text, `feed` asks the program, and `terminal` connects all of them with urwid.
Only the last two do any I/O.
"""
