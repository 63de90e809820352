"""What tests draw by chance."""

import os
import random


def chance() -> random.Random:
    """A source of chance: another one each time, but in CI always the same, whose verdict on a commit must not depend on chance."""
    return random.Random(0 if os.environ.get("CI") else None)
