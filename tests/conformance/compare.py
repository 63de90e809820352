"""A corpus against another implementation's traces: the first difference of each scenario, and a total."""

import gzip
import json


def simple_paths(tree, path=(), out=None):
    out = set() if out is None else out
    if tree.get("strategy") == "simple_one_for_one":
        out.add(tuple(path))
    for c in tree.get("children", []):
        if c.get("type") == "supervisor":
            simple_paths(c["sup"], (*path, c["id"]), out)
    return out


def dynamic_sups(scenario):
    """Paths of all simple_one_for_one supervisors a scenario can ever have."""
    out = simple_paths(scenario["tree"])
    for s in scenario["steps"]:
        sp = s.get("spec") or {}
        if s["op"] == "start_child" and sp.get("type") == "supervisor":
            out |= {(*s["sup"], *p) for p in simple_paths({"children": [sp]})}
    return out


def canon(step, dyn):
    """A step in the one order that counts.

    The children of a simple_one_for_one supervisor stop concurrently: sort each run of adjacent stop events under the
    same such supervisor. The deaths that an exit or exit_many step asked for (the first events) stay where they are.
    """
    i = {"exit": 1, "exit_many": len(step.get("ids", ()))}.get(step["op"], 0)
    ev, out = step["events"], step["events"][:i]
    while i < len(ev):
        j = i + 1
        if ev[i][0] == "stop" and tuple(ev[i][1][:-1]) in dyn:
            while j < len(ev) and ev[j][0] == "stop" and ev[j][1][:-1] == ev[i][1][:-1]:
                j += 1
            out += sorted(ev[i:j])
        else:
            out += ev[i:j]
        i = j
    sups = sorted(step.get("sups", ()), key=lambda s: s["path"])
    return {**step, "events": out, "sups": sups}


FIELDS = ("events", "result", "sups", "root", "replies")


def load(path):
    with gzip.open(path, "rt") as f:
        return [json.loads(x) for x in f]


def plain(steps):
    """A trace as it reads from a file."""
    return json.loads(json.dumps(steps))


def view(step, dyn):
    s = canon(step, dyn)
    return {k: s.get(k) for k in FIELDS}


def difference(e, g):
    """The first difference between what was recorded and what came out; empty if they agree."""
    sc = e["scenario"]
    dyn = dynamic_sups(sc)
    if g is None or "steps" not in g:
        return f"{sc['name']} missing {(g or {}).get('fault', '')}"
    for i, recorded in enumerate(e["trace"]):
        if i >= len(g["steps"]):
            d = "too few steps"
        else:
            x = view(recorded, dyn)
            ids = {k: recorded[k] for k in ("ids",) if k in recorded}
            y = view({"op": recorded["op"], **ids, **g["steps"][i]}, dyn)
            d = "".join(
                f"\n    {k}: expected {json.dumps(x[k])}\n    {k}:      got {json.dumps(y[k])}"
                for k in FIELDS
                if x[k] != y[k]
            )
        if d:
            return f"{sc['name']} step {i} {json.dumps(sc['steps'][i - 1]) if i else 'start'} {d}"
    return ""
