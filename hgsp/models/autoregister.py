"""Registration of the pruned model classes, as soon as transformers' Auto classes are imported.

``import hgsp`` must be enough for ``AutoModelForCausalLM.from_pretrained(pruned_folder)``, and must stay cheap:
importing the modelling files takes seconds. Those files import the Auto classes themselves, so that ``from transformers
import LlamaForCausalLM`` is still running when the Auto classes appear: registration waits for the end of the outermost
import.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

_AUTO_MODULE = "transformers.models.auto.configuration_auto"


def _register() -> None:
    from hgsp.models.modeling_hgsp import register

    register()


class _RegisterAfter(importlib.abc.MetaPathFinder):
    """An import hook that registers our classes when neither transformers nor their own file is being imported."""

    def __init__(self) -> None:
        self._being_imported = 0

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(("transformers.", "hgsp.models.modeling_hgsp")):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        run_module = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            self._being_imported += 1
            try:
                run_module(module)
            finally:
                self._being_imported -= 1
            if not self._being_imported and _AUTO_MODULE in sys.modules and self in sys.meta_path:
                sys.meta_path.remove(self)
                _register()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Register our classes now if the Auto classes are imported already, else when they are."""
    if _AUTO_MODULE in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _RegisterAfter())
