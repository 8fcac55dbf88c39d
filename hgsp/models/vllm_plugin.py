"""The vLLM plugin: pruned folders are served without ``--trust-remote-code`` where ``hgsp`` is installed."""

from __future__ import annotations


def register() -> None:
    """Put our classes where vLLM looks for them: with the Auto classes, and as attributes of ``transformers``.

    vLLM calls this in each of its processes, by the entry point ``vllm.general_plugins``.
    """
    from hgsp.models.families import FAMILIES
    from hgsp.models.family_classes import classes_of, register

    register()
    import transformers  # last: its first import replaces the module

    for family in FAMILIES.values():
        for own_class in classes_of(family):
            setattr(transformers, own_class.__name__, own_class)
