"""A sample of the suites that `make test-hard` runs whole."""

import os
import signal

import pytest

from hard import faults, kills, rivals
from hard.forked import import_everything
from hard.world import make_world

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    import_everything()
    return make_world(tmp_path_factory.mktemp("hard"), ["overwrite", "score"])


@pytest.mark.parametrize(("name", "number"), [("overwrite", 60), ("overwrite", 170), ("score", 24)])
def test_killed_at_a_write(world, name, number):
    assert kills.kill_at_write(world, name, number) == []


def test_a_limit_on_file_sizes(world):
    assert faults.disturb(world, "overwrite", faults.file_size(20_000)) == []


def test_an_interrupt_and_a_closed_pipe(world):
    assert faults.interrupt(world, "score", signal.SIGTERM, world.seconds["score"] / 2) == []
    assert faults.close_stdout(world, "score") == []


def test_two_at_once(world):
    assert rivals.race(world, "score") == []
