"""A context that says whatever it likes: see `grammar` for what, `play` for what must hold all the same."""
