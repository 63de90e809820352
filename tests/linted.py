"""A program of a page that imports this fails if `supervise check` warns of a tree that it opens."""

from supervise._trio import tree
from supervise.cli.bodies import mistakes
from supervise.cli.codes import CODES
from supervise.cli.findings import warnings

_check_root = tree.check_root


def check_root(spec):
    """Refuse a root as `open_tree` does, and one with a warning too."""
    root = _check_root(spec)
    found = [one for one in (*warnings(root), *mistakes(root)) if not CODES[one.code].optional]
    assert not found, "\n".join(f"{one.text} [{one.code}]" for one in found)
    return root


tree.check_root = check_root
