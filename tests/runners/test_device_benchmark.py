"""The benchmark of the device: what its verdicts mean, and that its runner is one."""

import json

import pytest
import trio
from contexts import (
    HOST,
    nothing_left,  # noqa: F401 - The import makes this autouse fixture apply to the tests of this file.
    opened,
)

from benchmarks import device, several
from benchmarks.batching import mean_batch
from benchmarks.paced import Paced
from runners.hosts.inline import InlineHost
from runners.hosts.thread import ThreadHost
from runners.types import FinishReason


@pytest.mark.parametrize(
    ("samples", "about", "good"),
    [
        ([1.0, 2.0, 9.0], {}, True),
        ([1.0, 2.0, 9.0], {"target": 2.0}, True),
        ([1.0, 2.1, 0.1, 9.0, 9.0], {"target": 2.0}, False),
        ([1.0, 2.0, 9.0], {"target": 2.0, "at_least": True}, True),
        ([1.0, 1.9, 9.0], {"target": 2.0, "at_least": True}, False),
    ],
)
def test_a_median_meets_its_target_or_does_not(samples, about, good):
    """A floor has no target."""
    figure = device.Figure("gap", samples, **about)
    assert figure.good is good
    assert ("NO" in figure.row()) is not good


@pytest.mark.parametrize(("median", "status"), [(1.0, 0), (3.0, 1)])
def test_the_command_reports_whether_all_targets_are_met(median, status, monkeypatch, tmp_path):
    """It reports that by its exit status, its table and its JSON."""

    def measure(report, **_):
        report.add(device.Figure("gap", [median] * 3, target=2.0))

    monkeypatch.setattr(device, "measure", measure)
    assert device.main(["--quick", "--json", str(tmp_path / "figures")]) == status
    (figure,) = json.loads((tmp_path / "figures").read_text())["figures"]
    assert (figure["median"], figure["good"]) == (median, status == 0)


@pytest.mark.slow
def test_a_missing_device_is_reported_in_one_line(capsys):
    """The exit status is 2, before anything is measured."""
    with pytest.raises(SystemExit) as left:
        device.main(["--device", "abacus:0"])
    assert left.value.code == 2
    assert "--device must be cpu or one that torch has here, got 'abacus:0'" in capsys.readouterr().err


@pytest.mark.trio
async def test_all_chunks_of_all_streams_come_through_the_buffers():
    """What is counted as chunks a second are chunks, each once and in order."""
    async with opened(Paced(device.STREAMS), HOST) as session:
        await device._through_buffers(session, 20)
        session.begin(device._request("one", 7))
        items = []
        while len(items) < 7:
            items += await session.receive()
    assert [item.index for item in items] == list(range(7))
    assert items[-1].finish_reason is FinishReason.LENGTH


def test_a_pause_and_a_wait_are_read_off_the_times_of_tokens():
    """The pause is between two tokens, and the wait before the first one; in milliseconds."""
    seen = several.Seen(None, asked=1.0, times=[1.5, 1.625, 2.625, 2.75])
    assert (seen.longest_pause, seen.wait) == (1000.0, 500.0)
    assert several.Seen(None).longest_pause == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("contexts", [1, 2])
def test_the_picture_shows_whole_streams_over_a_real_death(contexts):
    """D6, D12: Sixteen streams of the model; each has all its tokens, before and after the kill."""
    them, struck = trio.run(several.streams_over_a_death, contexts)
    assert [len(seen.times) for seen in them] == [170] * several.DRAWN
    assert all(seen.times[0] < struck < seen.times[-1] for seen in them)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(several.ORDERS))
def test_no_request_fails_while_an_order_is_carried_out(name):
    """D7, D12: Under load, with real processes, and none waits longer than a drain."""
    waits = trio.run(several.waits_during, several.ORDERS[name])
    assert len(waits) >= 12
    assert max(waits) < several.DRAIN * 1000


@pytest.mark.slow
@pytest.mark.parametrize("host", [device.STANDBY, device.FORKED], ids=["standby", "fork"])
def test_a_gap_is_measured_over_a_real_death(host):
    """From the kill to the first token of the next incarnation, which goes on where the last one was."""

    async def main():
        worker = device._worker("llm", host)
        async with device.open_tree(worker, sinks=[]) as tree:
            gap, length = await device._gap(tree, worker)
            assert (await tree[worker].ready()).incarnation == 2
        assert gap > 0
        assert length > device.STRIKE_AT

    trio.run(main)


@pytest.mark.parametrize(
    "host", [InlineHost(), ThreadHost(), device.FORKED], ids=["inline", "thread", "process"]
)
def test_the_size_of_a_batch_is_measured(host):
    """As many requests wait as the runner has places, and each is answered with the size of its step."""
    sizes = trio.run(device.batches, host, 3)
    assert len(sizes) == 3
    assert all(1 <= size <= device.PLACES for size in sizes)


@pytest.mark.parametrize(("sizes", "mean"), [([64] * 64, 64), ([1, *[3] * 3], 2), ([4] * 4 + [2] * 2, 3)])
def test_the_mean_of_the_steps_is_not_that_of_the_requests(sizes, mean):
    """A request alone in its step counts as much as a full step."""
    assert mean_batch(sizes) == pytest.approx(mean)


def test_a_request_is_measured_beside_none_and_beside_many_open_streams(monkeypatch):
    """Each in a run of its own, with as many streams open as it says."""
    monkeypatch.setattr(device.streams, "MANY", 70)
    none, many = device.request_times(2, requests=3)
    assert len(none) == len(many) == 2
    assert min(*none, *many) > 0

    async def count():
        async with device.streams.beside(70) as worker:
            return len((await worker.ready())._context.open)

    assert trio.run(count) == 70
