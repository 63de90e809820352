"""`python -m supervise.cli`."""

from . import main

main()
