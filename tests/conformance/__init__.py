"""Recorded behaviour of the supervisor of Erlang/OTP 25, and what this one does with the same scenarios."""
