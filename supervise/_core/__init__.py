"""The decisions, pure: no Trio, no clock, no randomness, no I/O. Time and chance come in as arguments."""
