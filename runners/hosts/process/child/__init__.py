"""The code of a context process, and of the fork server from which it is forked. It imports no Trio."""
