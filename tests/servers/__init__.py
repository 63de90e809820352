"""A worker over a server that fails in every way: its breaker, rate limits and retry budget, checked against their rules."""
