"""A sample of ``make test-hard-fuzz``: whatever is in a file, it is read or refused with one line, and so are the
inputs that failed once."""

import logging
from pathlib import Path
from random import Random

import pytest

from hard.fuzzing.executions import ACCEPTED, REFUSED, outcome_of
from hard.fuzzing.targets import BY_NAME

#: Inputs of earlier failures, by parser.
FOUND = Path(__file__).parent / "fuzzing"


@pytest.fixture(scope="module", params=BY_NAME)
def prepared(request, tmp_path_factory):
    """A parser with its seeds, ready to read."""
    target = BY_NAME[request.param]
    return target, *target.prepare(tmp_path_factory.mktemp("fuzzing"))


@pytest.fixture(autouse=True)
def without_warnings():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.filterwarnings("ignore")
def test_valid_files_are_accepted_and_mutated_ones_never_crash(prepared):
    target, seeds, run = prepared
    assert [outcome_of(run, seed) for seed in seeds] == [ACCEPTED] * len(seeds)
    random = Random(0)
    outcomes = [outcome_of(run, target.mutate(random, random.choice(seeds))) for _ in range(target.executions)]
    assert set(outcomes) <= {ACCEPTED, REFUSED}
    assert REFUSED in outcomes


@pytest.mark.filterwarnings("ignore")
def test_inputs_that_failed_once_no_longer_do(prepared):
    target, _, run = prepared
    for file in sorted(FOUND.glob(f"{target.name.replace(' ', '_')}-*")):
        assert outcome_of(run, file.read_bytes()) in (ACCEPTED, REFUSED), file.name
