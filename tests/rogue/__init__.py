"""A context that sends any bytes at any time: `grammar` has what it sends, `play` what must hold all the same."""
