"""How Hypothesis searches in every test of the project."""

import os

from hypothesis import settings

# No deadline: how long an example takes says nothing of it on a machine that is busy.
settings.register_profile("search", deadline=None)
# What CI says of a commit must not depend on chance; everybody else goes on searching.
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "search")
