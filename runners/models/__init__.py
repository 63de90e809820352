"""Runners that come with the package: a real language model, and scripted ones for tests. They need no worker and no host."""
