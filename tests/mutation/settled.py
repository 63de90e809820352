"""Hypothesis, so that it does the same every time, however busy the machine is."""

from hypothesis import HealthCheck, settings


def settle():
    """From now on."""
    same = settings(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    settings.register_profile("mutation", same)
    settings.load_profile("mutation")
