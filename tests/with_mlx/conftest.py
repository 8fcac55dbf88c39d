"""Tests that need mlx-lm, in an environment of its own: ``make test-mlx``."""

from hgsp.exports.folder_check import is_installed

collect_ignore_glob = [] if is_installed("mlx_lm") else ["test_*.py"]
