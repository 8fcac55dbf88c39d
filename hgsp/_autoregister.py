"""Registers the pruned model classes when transformers' Auto classes are first imported, not before.

``import hgsp`` must be enough for ``AutoModelForCausalLM.from_pretrained(pruned_folder)``, and must stay cheap:
importing three modelling files costs seconds, which ``--help`` has no use for.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

_AUTO_MODULE = "transformers.models.auto.modeling_auto"


def _register() -> None:
    from hgsp.modeling_hgsp import register

    register()


class _RegisterAfter(importlib.abc.MetaPathFinder):
    """Lets the ordinary finders find ``_AUTO_MODULE`` and runs the registration right after its code."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _AUTO_MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        run_module = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run_module(module)
            _register()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Register now if the Auto classes are there already, else as soon as they are."""
    if _AUTO_MODULE in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _RegisterAfter())
