"""Registration of the pruned model classes with transformers and PEFT, as soon as those are imported.

``import hgsp`` must be enough for ``AutoModelForCausalLM.from_pretrained(pruned_folder)``, and must stay cheap:
importing the modelling files takes seconds. Those files import the Auto classes themselves, so that ``from transformers
import LlamaForCausalLM`` is still running when the Auto classes appear: registration waits for the end of the outermost
import.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

_AUTO_MODULE = "transformers.models.auto.configuration_auto"
_PEFT_DEFAULTS = "peft.utils.constants"
_PEFT_CONFIG = "peft.config"


def _register_classes() -> None:
    from hgsp.models.family_classes import register

    register()


def _extend_peft() -> None:
    """Teach PEFT our model types, and to find the base of an adapter from its folder."""
    _extend_peft_defaults()
    _find_bases_of_adapters()


def _extend_peft_defaults() -> None:
    """Give our model types the default target modules of their families, in every method of PEFT that has some."""
    from hgsp.models.families import FAMILIES

    for name, defaults in vars(sys.modules[_PEFT_DEFAULTS]).items():
        if name.startswith("TRANSFORMERS_MODELS_TO_") and name.endswith("_MODULES_MAPPING"):
            for family in FAMILIES.values():
                model_type = "llama" if family.fused else family.model_type  # unfused, the projections are Llama's
                if model_type in defaults:
                    defaults.setdefault(family.pruned_model_type, defaults[model_type])


def _find_bases_of_adapters() -> None:
    """Let PEFT read a base such as ``../../prune_20`` from the folder of the adapter instead of the current one."""
    mixin = sys.modules[_PEFT_CONFIG].PeftConfigMixin
    read = mixin.from_json_file.__func__

    def from_json_file(cls: Any, /, path_json_file: str, **kwargs: Any) -> Any:
        content = read(cls, path_json_file, **kwargs)
        base = content.get("base_model_name_or_path") or ""
        place = Path(path_json_file).parent / base
        if base.startswith(("./", "../")) and place.is_dir():
            content["base_model_name_or_path"] = str(place.resolve())
        return content

    mixin.from_json_file = classmethod(from_json_file)


class _AfterImport(importlib.abc.MetaPathFinder):
    """An import hook that calls a function once a module is loaded and nothing under the prefixes is being imported."""

    def __init__(self, module: str, prefixes: tuple[str, ...], call: Callable[[], None]) -> None:
        self._module = module
        self._prefixes = prefixes
        self._call = call
        self._being_imported = 0

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(self._prefixes):
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
            if not self._being_imported and self._module in sys.modules and self in sys.meta_path:
                sys.meta_path.remove(self)
                self._call()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Register now with what is imported already, with the rest when it is."""
    for module, prefixes, call in (
        (_AUTO_MODULE, ("transformers.", "hgsp.models.modeling_hgsp"), _register_classes),
        (_PEFT_CONFIG, ("peft.",), _extend_peft),
    ):
        if module in sys.modules:
            call()
        else:
            sys.meta_path.insert(0, _AfterImport(module, prefixes, call))
