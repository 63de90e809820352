"""The Grafana dashboard and docs/operating/metrics.md, against what the sink exports."""

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import get_args

import pytest
import trio

from runners import InlineHost, device_worker
from runners.models.scripted import Scripted
from supervise import Child, Limit, Supervisor, events, open_tree
from supervise._core.node import State
from supervise.testing import echo, run_virtual

pytest.importorskip("prometheus_client", reason="needs trio-supervise[prometheus]")

from prometheus_client.parser import text_string_to_metric_families

from supervise.sinks.prometheus import PrometheusSink

PAGE = (Path(__file__).parents[2] / "docs" / "operating" / "metrics.md").read_text()
DASHBOARD = json.loads(files("supervise.sinks").joinpath("grafana.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ROWS = [panel for panel in DASHBOARD["panels"] if panel["type"] == "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
ALERTS = re.findall(r"^ +expr: (.*)$", PAGE, re.MULTILINE)
OF_THE_SCRAPE = {"job", "instance"}
KINDS = ("timeseries", "stat", "bargauge")
NAME = r"(?:supervise|runners)_\w+"


@pytest.fixture(scope="module")
def families():
    """All metrics, each with at least one sample, with those of device workers."""

    async def fails():
        await trio.sleep(1)
        raise ConnectionError("gone")

    children = [
        Child("a", fails),
        Child("b", echo, mailbox=4),
        device_worker("c", Scripted(), host=InlineHost()),
    ]
    tree = Supervisor("app", children, limit=Limit(5, within=60))
    sink = PrometheusSink(tree)
    where = {"at": 1.0, "path": "app/a", "incarnation": 1}
    for event in (
        events.Overdue(**where, seconds=1.0),
        events.StopError(**where, exc=OSError()),
        events.SinkFailed(**where, sink="<sink>", exc=OSError()),
    ):
        sink(event)

    async def main():
        async with open_tree(tree, sinks=[sink]) as t:
            sink.attach(t)
            await trio.sleep(2.5)
            return sink.expose()[0]

    return list(text_string_to_metric_families(run_virtual(main).decode()))


@pytest.fixture(scope="module")
def labels(families):
    """The labels of each sample that the sink exports, by its name."""
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


def names_in(query):
    return set(re.findall(rf"\b{NAME}", query))


@pytest.mark.parametrize("query", [*QUERIES, *ALERTS])
def test_every_query_is_of_metrics_and_labels_that_exist(query, labels):
    """R31: The dashboard, and the alerts of the page."""
    names = names_in(query)
    assert names
    assert names <= labels.keys()
    known = set.union(*(labels[name] for name in names)) | OF_THE_SCRAPE
    for name, selector in re.findall(rf"({NAME})\{{([^}}]*)\}}", query):
        assert set(re.findall(r"(\w+)=~?\"", selector)) <= labels[name] | OF_THE_SCRAPE
    for grouped in re.findall(r"\b(?:by|on) ?\(([^)]*)\)", query):
        assert set(re.split(r", *", grouped)) <= known
    for states in re.findall(r"state=~?\"([^\"]*)\"", query):
        assert set(states.split("|")) <= set(get_args(State))
    assert query.count("(") == query.count(")")


def test_every_metric_is_on_the_dashboard(labels):
    """R31: What is exported is worth a look; `_created` only says since when a counter counts."""
    shown = set().union(*map(names_in, QUERIES))
    exported = {re.sub("_(bucket|sum|count)$", "", name) for name in labels if not name.endswith("_created")}
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in shown} == exported


def test_the_dashboard_has_the_shape_of_one():
    """Grafana imports a file with these keys, and shows each panel in its own place of 24 columns."""
    assert DASHBOARD["uid"] == DASHBOARD["title"] == "trio-supervise"
    assert DASHBOARD["schemaVersion"] >= 36
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert [row["title"] for row in ROWS] == ["Device workers"]
    places = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not places & cells
        places |= cells
    for panel in PANELS:
        assert panel["type"] in KINDS
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert [target["refId"] for target in panel["targets"]] == ["A", "B", "C"][: len(panel["targets"])]


def test_every_variable_of_the_dashboard_is_used_and_declared():
    """The built-in ones of Grafana begin with two underscores."""
    declared = [variable["name"] for variable in DASHBOARD["templating"]["list"]]
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps([PANELS, DASHBOARD["templating"]])))
    assert used == set(declared)
    assert declared[0] == "datasource"


def test_the_page_lists_every_metric_with_its_type_and_labels(families):
    """R31: docs/operating/metrics.md has a row for each, and no other."""
    rows = {
        name: (kind, set(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels in re.findall(rf"^\| `({NAME})` \| (\w+) \|(.*?)\|", PAGE, re.MULTILINE)
    }
    exported = {}
    for family in families:
        if family.name.endswith("_created"):
            continue
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found = {label for sample in family.samples for label in sample.labels} - {"le"}
        exported[name] = family.type, found
    assert rows == exported
    assert len(ALERTS) >= 5
