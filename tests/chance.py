"""What tests draw by chance."""

import os
import random


def chance(seed: int | str = 0) -> random.Random:
    """A source of chance: another one each time, but in CI always the same, whose verdict on a commit must not depend on chance. Tests with other seeds draw other things there."""
    return random.Random(seed if os.environ.get("CI") else None)
