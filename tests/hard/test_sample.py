"""A sample of the suites that `make test-hard` runs whole."""

import os

import pytest

from hard import faults, kills, rivals
from hard.forked import import_everything
from hard.world import make_world

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    import_everything()
    return make_world(tmp_path_factory.mktemp("hard"), ["overwrite", "score"])


@pytest.mark.parametrize("name", ["overwrite", "score"])
def test_killed_at_a_write(world, name):
    for label, experiment in kills.at_writes(world, name, 3):
        assert experiment() == [], label


def test_killed_at_a_random_moment(world):
    for label, experiment in kills.at_moments(world, "overwrite", 1):
        assert experiment() == [], label


@pytest.mark.parametrize("fault", [faults.file_size(20_000), faults.open_files(1)], ids=lambda fault: fault.name)
def test_limits(world, fault):
    assert faults.disturb(world, "overwrite", fault) == []


def test_an_interrupt_and_a_closed_pipe(world):
    for label, experiment in faults.interrupts(world, "score", 1):
        assert experiment() == [], label
    assert faults.close_stdout(world, "score") == []


def test_two_at_once(world):
    assert rivals.race(world, "score") == []
