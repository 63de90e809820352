"""What holds for every test of the project: how Hypothesis searches, what programs inherit, and whether the one-step restart may be taken."""

import gc
import os
import signal

from hypothesis import HealthCheck, settings

from supervise._core.forest import Forest

# On a busy machine the time of an example, or of drawing it, means nothing.
settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# The verdict of CI on a commit must not depend on chance; runs elsewhere go on searching.
settings.register_profile("ci", settings.get_profile("search"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "search")

# Programs that the tests start write plain text, also where CI asks every program for colours.
os.environ.pop("FORCE_COLOR", None)

# A shell starts a command in the background with SIGINT ignored, and so would be every program that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

if os.environ.get("ONE_STEP") == "off":
    # A restart in one step is nothing but a quicker one: without it every test must pass as well.
    Forest.one_step = False


def pytest_collection_finish() -> None:
    """No collection of garbage looks again at the million objects that are there before the first test: many tests collect theirs."""
    gc.collect()
    gc.freeze()
