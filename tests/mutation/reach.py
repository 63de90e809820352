"""Which tests reach which lines of the core, and how long they take."""

from __future__ import annotations

import hashlib
import pickle
import time
from collections import defaultdict
from pathlib import Path

import coverage

from .mutants import CORE

TESTS = Path(__file__).parents[1]


class Reach:
    """Kept in a file, if there is one, for as long as the core and the tests stay as they are."""

    def __init__(self, path):
        self.path, self.took, self.failing, self.lines = path, {}, set(), {}
        text = b"".join(
            path.read_bytes() for folder in (CORE, TESTS) for path in sorted(folder.rglob("*.py"))
        )
        self.text = hashlib.sha256(text).hexdigest()
        if path is not None and path.exists():
            kept = pickle.loads(path.read_bytes())
            if kept.get("text") == self.text:
                vars(self).update(kept, path=path)

    def measure(self, tests):
        """Run these tests, each once."""
        measured = coverage.Coverage(source_pkgs=["supervise._core"], data_file=None, config_file=False)
        measured.set_option("run:disable_warnings", ["module-not-measured", "no-data-collected"])
        measured.start()
        for test in tests:
            measured.switch_context(test.name)
            began = time.process_time()
            passes = test.passes()
            self.took[test.name] = time.process_time() - began
            self.failing |= set() if passes else {test.name}
        measured.stop()
        for path in CORE.glob("*.py"):
            lines = self.lines.setdefault(path.name, defaultdict(set))
            for line, names in measured.get_data().contexts_by_lineno(str(path)).items():
                lines[line].update(names)
        if self.path is not None:
            self.path.write_bytes(pickle.dumps(vars(self)))
