"""Tests that need vLLM, in an environment of its own: ``make test-vllm``."""

from hgsp.exports.folder_check import is_installed

collect_ignore_glob = [] if is_installed("vllm") else ["test_*.py"]
