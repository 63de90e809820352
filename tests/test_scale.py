"""`docs/explanation/scale.md`: the page shows the recorded results, and small runs agree with its statements."""

from functools import cache
from itertools import pairwise

import pytest
import trio
from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.scale import cost, partition, rack, stop
from benchmarks.scale.__main__ import BEGIN, PAGE, last, pictures, published
from benchmarks.scale.tables import TABLES
from benchmarks.scale.world import LEASE, LOAD, MARGIN, Size
from benchmarks.svg import DARK
from runners import InlineHost, RunnerInfo, device_worker
from supervise import open_tree
from supervise.testing import run_virtual

SMALL = Size(racks=4, hosts=5)
TINY = Size(racks=3, hosts=2)
RACK = SMALL.hosts * SMALL.devices
OTHERS = SMALL.all_devices - RACK


@cache
def lost(name):
    return rack.lose(rack.DECLARATIONS[name], SMALL)


@cache
def storm(jitter, *, queue=False):
    return rack.lose(rack.storm(jitter), SMALL, queue=queue)


@cache
def parted(name):
    return partition.part(partition.TERMS[name], SMALL)


# --- the page


def test_the_page_shows_the_recorded_results():
    """Every table and picture of the page is made of the last results, and every table has its place."""
    page, results = PAGE.read_text(), last()
    assert [name for name in TABLES if BEGIN.format(name) not in page] == []
    assert published(page, results) == page
    for name, picture in pictures(results).items():
        assert (PAGE.parent / name).read_text() == picture, name


def test_the_pictures_have_a_dark_form():
    """Each color of a picture has another one for a dark page."""
    for name, picture in pictures(last()).items():
        used = {part.partition('"')[0] for part in picture.replace('stroke="', 'fill="').split('fill="')[1:]}
        assert used - {"none"} <= set(DARK), name


# --- the loss of a rack


@pytest.mark.parametrize("name", [rack.FLAT, rack.DEFAULTS])
def test_default_limits_end_the_tree_when_a_rack_is_lost(name):
    """R14: a loss that is counted by limits above it goes up to the root, and takes every healthy device along."""
    assert lost(name).ended is not None
    assert lost(name).stopped_healthy >= OTHERS - 1  # the bystander may be down already
    assert lost(name).up is None


def test_a_loss_passes_the_limit_of_each_layer():
    """R14: in layers with default limits first a host passes its limit, then its rack, and then the fleet."""
    paths = [path for _, path in lost(rack.DEFAULTS).passed]
    assert [path.count("/") for path in paths] == [2, 1, 0]
    assert all(below.startswith(above) for below, above in pairwise(paths))


@pytest.mark.parametrize("name", [rack.FLAT_FREE, rack.EACH, rack.ON_HOSTS])
def test_without_limits_above_no_healthy_device_is_stopped(name):
    """The loss of a rack stays in the rack."""
    assert lost(name).ended is None
    assert lost(name).stopped_healthy == 0
    assert lost(name).up is not None


def test_one_supervisor_starts_one_device_after_the_other():
    """R19: under one supervisor a slow start delays all others, also that of a device elsewhere."""
    assert lost(rack.FLAT_FREE).up > 3 * lost(rack.EACH).up
    assert lost(rack.FLAT_FREE).bystander > 10 * lost(rack.EACH).bystander


def test_a_tree_on_each_host_loads_one_device_of_a_host_at_a_time():
    """R12: so the order of the starts bounds the loads by the number of hosts, without a queue."""
    without = rack.lose(rack.DECLARATIONS[rack.ON_HOSTS], SMALL, queue=False)
    assert without.peak == SMALL.hosts
    assert without.given_up == 0
    assert without.attempts == 0


@pytest.mark.parametrize("name", ["one_for_all", "rest_for_one"])
def test_a_group_over_hosts_stops_healthy_devices(name):
    """R13: under one_for_all and rest_for_one the loss of one host restarts devices of others; under one_for_one none."""
    host = [SMALL.hosts + SMALL.hosts // 2]
    group, one = (rack.lose(rack.GROUPS[each], SMALL, hosts=host) for each in (name, "one_for_one"))
    assert group.stopped_healthy >= 2 * SMALL.devices
    assert one.stopped_healthy == 0
    assert group.up > 2 * one.up


# --- the storm


def test_jitter_spreads_the_starts():
    """R15: with full jitter less than half as many loads are asked for in the worst second as without."""
    assert storm(1.0).busiest < storm(0.0).busiest / 2
    assert storm(0.0).given_up > 0
    assert storm(1.0).given_up == 0
    assert storm(1.0).up < storm(0.0).up


def test_only_a_queue_bounds_the_loads():
    """Jitter lowers the peak; a queue at the file server bounds it."""
    assert SMALL.hosts < storm(1.0).peak < storm(0.0).peak
    assert storm(1.0, queue=True).peak == SMALL.hosts


# --- a first start


def test_loads_within_the_starts_of_one_program_follow_one_another():
    """R12: the first start of one program takes the sum of all loads; a tree on each host starts beside the others."""
    one, each = (
        rack.boot(rack.BOOTS[name], SMALL, queue=True, horizon=10_000)
        for name in (rack.IN_START, rack.ON_HOSTS)
    )
    assert one.peak == 1
    assert one.up > (SMALL.hosts - 1) * each.up


@frozen
class Slow:
    """A runner that takes some seconds to load."""

    async def build(self, _):
        await trio.sleep(LOAD)
        return self

    info = RunnerInfo(streams=1, runtime="test")

    async def execute(self, batch):
        raise NotImplementedError

    async def rebuild(self, cause):
        raise NotImplementedError

    async def close(self):
        """Nothing is open."""


def test_a_device_worker_loads_one_context_after_the_other():
    """R12, D12: the first start of a worker takes the sum of the loads of its contexts."""

    async def main():
        async with open_tree(device_worker("llm", Slow(), hosts=[InlineHost()] * 4), sinks=[]):
            return trio.current_time()

    assert run_virtual(main) == pytest.approx(4 * LOAD)


def test_a_start_of_everything_at_once_needs_a_queue():
    """Without a queue each load takes longer than its timeout, so none ever ends; with one all are up."""
    start = rack.BOOTS[rack.AT_ONCE]
    shared = rack.boot(start, SMALL, queue=False, horizon=150)
    assert shared.devices == 0
    assert shared.given_up > SMALL.all_devices
    assert rack.boot(start, SMALL, queue=True, horizon=300).up is not None


# --- a stop


def test_an_ordered_stop_takes_the_sum_of_the_drains_of_one_program():
    """R12, R26: children drain one after the other, the members of a pool together, and hosts beside each other."""
    seconds = [stop.stop(programs, SMALL) for programs in stop.STOPS.values()]
    assert seconds == pytest.approx(
        [SMALL.all_devices * stop.FINISH, stop.FINISH, SMALL.devices * stop.FINISH]
    )


# --- the partition


def test_only_a_lease_that_is_waited_for_keeps_a_unit_in_one_place():
    """R9, D16: without a lease, without the wait, or with a wait that the grace cuts short, two hosts hold a unit at once."""
    for name in (partition.NO_LEASE, partition.NO_WAIT, partition.CUT_SHORT):
        assert parted(name).doubled == parted(name).units, name
    assert parted(partition.FENCED).doubled == 0
    assert 0 < parted(partition.FENCED).longest_gap < LEASE + MARGIN
    worst = [parted(name).longest_double for name in partition.TERMS]
    assert worst == sorted(worst, reverse=True)


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32))
def test_no_schedule_has_a_unit_in_two_places(seed):
    """R9, D16: with the lease, the wait and its grace a unit is never held twice, whatever the order and the moments."""
    assert partition.part(partition.TERMS[partition.FENCED], TINY, seed).doubled == 0
    assert partition.kill(partition.FIRST[partition.WAITS_FIRST], TINY, seed).doubled == 0


def test_a_new_control_program_waits_for_the_old_leases():
    """R12: its first child is ready when they are over; without it units are held twice. No model is loaded again in either case."""
    at_once, later = (partition.kill(first, SMALL) for first in partition.FIRST.values())
    assert at_once.doubled > 0
    assert later.doubled == 0
    assert at_once.loads == later.loads == 0


# --- the cost


@pytest.mark.slow
def test_the_loss_of_a_rack_costs_the_same_in_a_fleet_of_any_size():
    """No input, event or turn is for a device that was not lost."""
    few, many = (cost.counted("ours", Size(racks, hosts=2, devices=4)) for racks in (2, 20))
    assert few["lose a rack"] == many["lose a rack"]
    assert few["lose a rack"]["inputs"] == 4 * 2 * 4


def test_a_start_and_a_stop_cost_the_same_for_each_node():
    """A start has an input for each leaf, two for each supervisor below the root and one for the root, and a stop has as many."""
    for racks in (2, 20):
        counted = cost.counted("ours", Size(racks, hosts=2, devices=4))
        supervisors, leaves = 1 + racks + 2 * racks, 8 * racks
        for phase in ("start", "stop"):
            assert counted[phase]["inputs"] == leaves + 2 * supervisors - 1
