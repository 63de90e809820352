"""Ctrl-C at every line: does the tree stop in order, whatever it was doing?

A `KeyboardInterrupt` may arrive at any line, of ours or of the user's (R4). So each line is tried: a small program that
uses one part of the library is run again and again in virtual time, each time with a SIGINT at the next line that it
executes in `supervise/` or `runners/`. `python -m tests.ctrl_c` tries them all; the tests try a sample.

`programs` are the programs, `strike` raises the signal, `verdict` judges a run, `devices` has programs with real processes
and threads, in real time (half a second a line), `fronts` has those that answer requests over HTTP, `moments` sends real
signals at random moments to processes, and `__main__` runs it all.
"""
