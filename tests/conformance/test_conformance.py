"""What was recorded of the supervisor of Erlang/OTP 25, and what this one does with the same scenarios."""

from pathlib import Path

import pytest

from .compare import difference, load, plain
from .through import trace

CORPUS = Path(__file__).parent / "corpus"
SIZES = {"hand": 373, "open": 1000}


@pytest.mark.parametrize("through", ["machine", pytest.param("trio", marks=pytest.mark.slow)])
@pytest.mark.parametrize("corpus", SIZES)
def test_every_recorded_scenario_agrees(corpus, through):
    """Events, results, states, counts, replies and the root's state are those of OTP, scenario for scenario."""
    recorded = load(CORPUS / f"{corpus}.jsonl.gz")
    assert len(recorded) == SIZES[corpus]
    found = [difference(it, {"steps": plain(trace(it["scenario"], through))}) for it in recorded]
    assert [text for text in found if text] == []
