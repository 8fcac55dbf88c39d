"""Tests that need quantisers, in an environment of their own: ``make test-quantize``."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("llmcompressor") else ["test_*.py"]
