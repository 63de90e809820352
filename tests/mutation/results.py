"""What became of each mutant."""

from __future__ import annotations

import json
from collections import Counter


class Results:
    """By name; kept in a file, if there is one."""

    def __init__(self, path, *, again):
        self.path, self.again, self.found = path, again, {}
        if path is not None and path.exists():
            rows = map(json.loads, path.read_text().splitlines())
            self.found = {row["name"]: row for row in rows}

    def known(self, mutant):
        """Whether this very mutant is not to be done: it has been, or, if some are to be done again, it had not."""
        row = self.found.get(mutant.name, {"status": ""})
        if self.again:
            return row["status"] != "survived"
        return row.get("diff") == mutant.diff()

    def note(self, mutant, status, by=""):
        row = {"name": mutant.name, "status": status, "by": by, "diff": mutant.diff()}
        self.found[mutant.name] = row
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        return row

    def tell(self, mutants):
        """Print the survivors and a line for each file; gives the percentage that was noticed."""
        rows = [self.found[mutant.name] for mutant in mutants if mutant.name in self.found]
        for row in rows:
            if row["status"] == "survived":
                print(f"\n{row['name']}\n{row['diff']}")
        total, noticed = Counter(), Counter()
        for row in rows:
            for name in (row["name"].partition(".")[0], "all"):
                total[name] += 1
                noticed[name] += row["status"] != "survived"
        print("\nfile           mutants  killed  survived")
        for name in sorted(total, key=lambda name: (name == "all", name)):
            killed = noticed[name]
            print(f"{name:14}{total[name]:8}{killed:8}{total[name] - killed:10}{killed / total[name]:9.1%}")
        return 100 * noticed["all"] / max(1, total["all"])
