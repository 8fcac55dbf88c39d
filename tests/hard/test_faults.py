"""What the suite of faults calls wrong."""

import pytest

from hard.faults import judged
from hard.forked import Ended


@pytest.mark.parametrize(
    ("code", "errors", "wrong"),
    [
        (0, "", ""),
        (1, "error: expected 8 GB", ""),
        (127, "cannot allocate memory for thread-local data: ABORT", ""),
        (-6, "Fatal glibc error: failed to register TLS destructor: out of memory", ""),
        (None, "", "hangs"),
        (127, "hgsp: not found", "exit code 127"),
        (-6, "free(): invalid pointer", "exit code -6"),
        (1, "", "0 lines"),
        (2, "error: this\nerror: and that", "2 lines"),
        (1, "Traceback (most recent call last)", "traceback"),
    ],
)
def test_a_command_ends_well_with_a_known_code_and_one_line(code, errors, wrong):
    problems = judged(Ended(code, errors, 1.0))
    assert [problem[: len(wrong)] for problem in problems] == ([wrong] if wrong else [])
