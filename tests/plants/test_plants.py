"""The list of planted faults is true to the code, and a fault that is planted is caught."""

import shutil

import pytest

from .plant import caught_by, copy_of_project
from .plants import PLANTS

QUICK = {"a request is not withdrawn", "the node that a start waits for is not named"}
FIRST = [plant for plant in PLANTS if plant.name in QUICK]


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_a_plant_stands_where_it_says(plant):
    """A change to the code must change the plant in it too."""
    assert plant.text()


def test_no_two_plants_have_one_name():
    """A plant is selected by its name."""
    assert len({plant.name for plant in PLANTS}) == len(PLANTS)


@pytest.mark.slow
@pytest.mark.parametrize("plant", FIRST, ids=lambda plant: plant.name)
def test_a_planted_fault_is_caught(plant):
    """A few of them; `python -m tests.plants` plants them all."""
    root = copy_of_project()
    try:
        assert caught_by(plant, root)
    finally:
        shutil.rmtree(root.parent)
