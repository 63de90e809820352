"""A running tree seen and changed from outside: over a socket, on a page, on a terminal of its own."""
