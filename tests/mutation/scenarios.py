"""The recorded scenarios, each as a test of its own, through the bare machine."""

from __future__ import annotations

from ..conformance.compare import difference, load, plain
from ..conformance.test_conformance import CORPUS
from ..conformance.through import trace


class Scenario:
    """One of them."""

    def __init__(self, recorded):
        self.recorded, self.name = recorded, f"scenario {recorded['scenario']['name']}"

    def passes(self):
        try:
            return not difference(
                self.recorded, {"steps": plain(trace(self.recorded["scenario"], "machine"))}
            )
        except Exception:
            return False


def all_scenarios():
    """All of both corpora."""
    return [Scenario(it) for name in ("hand", "open") for it in load(CORPUS / f"{name}.jsonl.gz")]
