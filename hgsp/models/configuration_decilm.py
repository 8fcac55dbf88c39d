"""The config of a ``nemotron-nas`` model, which transformers lacks.

This file imports transformers only and is copied into every export to that format, for the engines that read configs
through transformers (vLLM, TensorRT-LLM, SGLang).
"""

from __future__ import annotations

from typing import Any

from transformers.models.mistral.configuration_mistral import MistralConfig


class Settings(dict):  # type: ignore[type-arg]
    """A dict, nested dicts included, whose values are attributes too: engines read them as such."""

    def __init__(self, content: dict[str, Any]) -> None:
        super().__init__({key: Settings(value) if isinstance(value, dict) else value for key, value in content.items()})

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class DeciLMConfig(MistralConfig):  # LlamaConfig refuses head counts that do not divide the hidden size
    """Settings of a Llama decoder, with the sizes of every layer in ``block_configs``: ``attention`` and ``ffn``."""

    model_type = "nemotron-nas"

    def __init__(self, block_configs: Any = (), **kwargs: Any) -> None:
        super().__init__(**{"sliding_window": None, "attention_bias": False, "mlp_bias": False, **kwargs})
        self.block_configs = [Settings(block) for block in block_configs]
