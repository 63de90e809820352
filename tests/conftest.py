"""What holds for every test of the project: how Hypothesis searches, and whether the one-step restart may be taken."""

import os

from hypothesis import settings

from supervise._core.forest import Forest

# No deadline: how long an example takes says nothing of it on a machine that is busy.
settings.register_profile("search", deadline=None)
# What CI says of a commit must not depend on chance; everybody else goes on searching.
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "search")

if os.environ.get("SHORT_WAY") == "off":
    # A restart in one step is nothing but a quicker one: without it every test must pass as well.
    Forest.one_step = False
