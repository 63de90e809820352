"""Runners that come with the package: adapters for models of users, language models, and scripted ones for tests. They need no host."""
