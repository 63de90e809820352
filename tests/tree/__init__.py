"""The rules of the tree, on real Trio tasks under virtual time."""
