"""The vLLM plugin: pruned folders are served without ``--trust-remote-code`` where ``hgsp`` is installed."""

from __future__ import annotations


def register() -> None:
    """Put our classes where vLLM looks for them: with the Auto classes, and as attributes of ``transformers``.

    vLLM calls this in each of its processes, by the entry point ``vllm.general_plugins``.
    """
    from hgsp.models import modeling_hgsp, modeling_hgsp_moe

    modeling_hgsp.register()
    modeling_hgsp_moe.register()
    import transformers  # last: its first import replaces the module

    for classes in (*modeling_hgsp.FAMILY_CLASSES, *modeling_hgsp_moe.MOE_CLASSES):
        for own_class in classes:
            setattr(transformers, own_class.__name__, own_class)
