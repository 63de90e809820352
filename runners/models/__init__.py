"""Runners that come with the package: a real language model, and ones that tests script. No worker, no host."""
