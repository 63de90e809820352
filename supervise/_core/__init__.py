"""The decisions, pure: no Trio, no clock, no randomness, no I/O. The time and random numbers are arguments."""
