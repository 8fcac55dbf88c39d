"""Names for command lines: the same as those of the code behind them, and cheap to import."""

import subprocess
import sys

import pytest

from hgsp.scoring.methods import METHODS
from hgsp.scoring.names import IMPORTANCE_METHODS, TEXT_FREE_METHODS


def test_method_names_are_those_of_the_methods():
    assert tuple(METHODS) == IMPORTANCE_METHODS
    assert {name for name, method in METHODS.items() if not method.needs} == set(TEXT_FREE_METHODS)


@pytest.mark.parametrize("module", ["hgsp.scoring.names", "hgsp.reconstruction.names", "hgsp.pipeline.config"])
def test_names_are_imported_without_torch(module):
    script = f"import sys, {module}; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
