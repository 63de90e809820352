"""The moving picture of the README is drawn from a run of the demo."""

import re
from xml.etree import ElementTree as ET

import pytest
import trio

from benchmarks.demo import PICTURE, STREAMS, Run, draw, record
from supervise import Child, Supervisor, open_tree
from supervise.sinks.data import as_data
from supervise.testing import Fail, FaultPlan, Script, idle, run_virtual
from supervise.views.timeline import timelines

SVG = "{http://www.w3.org/2000/svg}"


def looks(picture, look):
    """The elements of one look."""
    return [each for each in ET.fromstring(picture).iter() if look in each.get("class", "").split()]


def texts(picture, look):
    """The texts of one look."""
    return [each.text for each in looks(picture, look) if each.tag == f"{SVG}text"]


@pytest.fixture(scope="module")
def picture():
    """Of a tree whose context fails after a second, beside two streams of two tokens each."""
    seen = []
    tree = Supervisor("demo", [Supervisor("llm", [Child("context", idle)]), Child("feed", idle)])
    plan = FaultPlan({"demo/llm/context": Script(body=Fail(ConnectionError("gone"), after=1))})

    async def main():
        async with open_tree(plan.over(tree), sinks=[seen.append]):
            await trio.sleep(2)

    run_virtual(main)
    data = [as_data(event, number=number, time=event.at) for number, event in enumerate(seen, 1)]
    [states] = timelines(data)
    return draw(Run(states, {0: [0.5, 1.5], 1: [0.6, 1.6]}, "4 tokens"))


def test_the_picture_has_each_node_each_token_and_what_the_tree_reports(picture):
    """The nodes stand in the order of the tree, and what it reports in its words."""
    assert [text.split()[-1] for text in texts(picture, "ink")[:6]] == [
        "demo",
        "llm",
        "context",
        "feed",
        "1",
        "2",
    ]
    assert sum(each.tag == f"{SVG}rect" for each in looks(picture, "token")) == 4
    assert "[demo/llm/context #1] failed: ConnectionError: gone" in texts(picture, "trouble")
    assert "[demo/llm/context #2] is ready again, 0 ms after the failure" in texts(picture, "up")


def test_without_motion_the_end_of_the_run_is_shown(picture):
    """What is shown for a while is hidden then, and each node has one state."""
    states = [
        each.text
        for each in looks(picture, "up")
        if each.get("x") == "196.0" and "past" not in each.get("class")
    ]
    assert states == ["up", "up", "up #2", "up"]
    assert ".past{opacity:0}" in picture
    [cover] = looks(picture, "future")
    assert cover.get("transform") == "translate(536)"  # beside the lanes


def test_what_has_not_happened_yet_is_covered_at_the_pace_of_the_words(picture):
    """When the cover has passed a place on a lane, the words of that instant appear."""
    [gone] = set(re.findall(r"translateX\((\d+)px\)", picture))
    end = float(
        re.search(r"@keyframes future\{from\{transform:none\}([\d.]+)%,to\{transform:translateX", picture)[1]
    )
    [words] = [each for each in looks(picture, "trouble") if "failed" in (each.text or "")]
    name = words.get("style").partition(":")[2]
    begins = float(re.search(rf"@keyframes {name}\{{from\{{opacity:0\}}([\d.]+)%", picture)[1])
    [mark] = [each for each in looks(picture, "trouble") if each.get("width") == "2.0"]
    covered = next(each for each in looks(picture, "future"))[0]
    assert float(mark.get("x")) + 1 - float(covered.get("x")) == pytest.approx(
        float(gone) * begins / end, abs=0.1
    )


@pytest.mark.parametrize("of", ["a run", "the README"])
def test_the_picture_needs_nothing_from_outside_and_runs_nothing(picture, of):
    """A forge shows it as it is, on a light and on a dark screen."""
    text = picture if of == "a run" else PICTURE.read_text()
    assert text.isascii()
    assert re.findall(r"https?:|href|url\(|@import|<script", text) == ["http:"]  # the name of SVG itself
    assert "prefers-color-scheme:dark" in text


@pytest.mark.slow
def test_a_run_of_the_demo_loses_its_context_and_no_token():
    """A real process is killed, and the texts are those of a run without the kill."""
    run = record()
    assert [lane.path for lane in run.states.lanes if lane.failures] == ["demo/llm/context"]
    assert len(run.tokens) == STREAMS
