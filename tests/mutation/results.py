"""What became of each mutant."""

from __future__ import annotations

import json
from collections import Counter


class Results:
    """By name, for as long as its function reads the same; kept in a file, if there is one."""

    def __init__(self, path, *, again):
        self.path, self.again, self.found = path, again, {}
        if path is not None and path.exists():
            rows = map(json.loads, path.read_text().splitlines())
            self.found = {(row["name"], row["of"]): row for row in rows}

    def known(self, mutant):
        """Whether it is not to be done: it has been, and, if some are to be done again, was killed."""
        row = self.found.get((mutant.name, mutant.of))
        return row is not None and not (self.again and row["status"] == "survived")

    def note(self, mutant, status, by=""):
        row = {"name": mutant.name, "of": mutant.of, "status": status, "by": by, "diff": mutant.diff()}
        self.found[mutant.name, mutant.of] = row
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        return row

    def tell(self, mutants):
        """Print the survivors and a line for each file; gives the percentage that was noticed."""
        total, noticed = Counter(), Counter()
        for mutant in mutants:
            row = self.found.get((mutant.name, mutant.of))
            if row is None:
                continue
            if row["status"] == "survived":
                print(f"\n{mutant.name}\n{mutant.diff()}")
            for name in (mutant.path.stem, "all"):
                total[name] += 1
                noticed[name] += row["status"] != "survived"
        print("\nfile           mutants  killed  survived")
        for name in sorted(total, key=lambda name: (name == "all", name)):
            killed = noticed[name]
            print(f"{name:14}{total[name]:8}{killed:8}{total[name] - killed:10}{killed / total[name]:9.1%}")
        return 100 * noticed["all"] / max(1, total["all"])
