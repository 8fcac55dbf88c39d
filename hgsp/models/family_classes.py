"""The classes of every family's pruned models, found by name in its modelling file and registered with transformers.

This module imports transformers only inside functions: it is itself imported at the end of the import of transformers.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from hgsp.errors import InputError
from hgsp.models.families import FAMILIES, Family

#: Auto classes of transformers for a base model, a causal language model and a sequence classifier.
AUTO_CLASSES = ("AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
_PACKAGE = __name__.rpartition(".")[0]
_BASE = "modeling_hgsp"


def classes_of(family: Family) -> tuple[Any, ...]:
    """Return the config, base model, causal language model and sequence classifier of a family's pruned models."""
    module = importlib.import_module(f"{_PACKAGE}.{family.modeling_file}")
    kinds = ("Config", "Model", "ForCausalLM", "ForSequenceClassification")
    return tuple(getattr(module, f"{family.class_prefix}{kind}") for kind in kinds)


def is_installed(family: Family) -> bool:
    """Return whether the installed transformers has what the classes of a family need."""
    import transformers

    return tuple(map(int, transformers.__version__.split(".")[:2])) >= family.first_version


def check_installed(family: Family) -> None:
    """Refuse the models of a family that the installed transformers has no classes for.

    Raises:
        InputError: with the version that has them.
    """
    import transformers

    if not is_installed(family):
        needed = ".".join(map(str, family.first_version))
        raise InputError(
            expected=f"transformers {needed} or newer for {family.models}",
            got=transformers.__version__,
            remedy=f"pip install 'transformers>={needed}'",
        )


def travelling_files(family: Family) -> tuple[Path, ...]:
    """Return the modelling files that a checkpoint of the family carries."""
    names = dict.fromkeys((_BASE, family.modeling_file))
    return tuple(Path(__file__).with_name(f"{name}.py") for name in names)


def auto_map(family: Family) -> dict[str, str]:
    """Return the ``auto_map`` of a pruned model's config."""
    classes = zip(("AutoConfig", *AUTO_CLASSES), classes_of(family), strict=True)
    return {auto_class: f"{family.modeling_file}.{own.__name__}" for auto_class, own in classes}


def register() -> None:
    """Register our classes with the Auto classes of transformers, and let ``save_pretrained`` copy their files."""
    import transformers

    for family in filter(is_installed, FAMILIES.values()):
        config_class, *model_classes = classes_of(family)
        transformers.AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        config_class.register_for_auto_class()
        for auto_class, model_class in zip(AUTO_CLASSES, model_classes, strict=True):
            getattr(transformers, auto_class).register(config_class, model_class, exist_ok=True)
            model_class.register_for_auto_class(auto_class)
