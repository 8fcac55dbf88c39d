"""Models of one evaluation: resolved and checked before anything expensive, loaded when needed."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hgsp.console.report_schema import DENSE, PRUNED, RECOVERED
from hgsp.errors import InputError
from hgsp.evaluation.config import EvaluationConfig
from hgsp.evaluation.metrics.ppl import bos_token, window_length
from hgsp.evaluation.results import canonical_path, model_identity
from hgsp.evaluation.tasks import EFFICIENCY, is_text
from hgsp.models.checkpoint import config_of, load_pruned, load_tokenizer_of
from hgsp.models.loading import DTYPES, check_positions
from hgsp.models.places import WEIGHTS, is_folder, is_gguf, refuse_no_model
from hgsp.models.stored_tensors import stored_dtype
from hgsp.models.tokenizers import check_vocabulary

LOG = logging.getLogger("hgsp.evaluation")


@dataclass(frozen=True)
class ModelUnderTest:
    """A model to measure: its role, the name the user gave, its config, and the identity of its weights."""

    role: str
    name: str
    config: Any
    identity: str

    @property
    def path(self) -> str:
        """The canonical path: equal for all ways to name the same model."""
        return canonical_path(self.name)


def models_under_test(config: EvaluationConfig) -> list[ModelUnderTest]:
    """Return the requested models, dense first.

    Raises:
        InputError: a path does not exist, a folder has no weights, a config cannot be loaded, or a window or the
            prompt of efficiency is longer than a model allows.
    """
    names = {
        DENSE: config.base_model if config.compare else None,
        PRUNED: config.model_path,
        RECOVERED: config.recovered_model,
    }
    for name in (config.base_model, *names.values()):
        if name is not None:
            refuse_missing(name)
    models = [_inspected(role, name) for role, name in names.items() if name is not None]
    for model in models if EFFICIENCY in config.task_names else ():
        check_positions(model.config, "--prompt_len plus --decode_len", config.prompt_len + config.decode_len)
    if config.seq_len is not None and any(is_text(task) for task in config.task_names):
        for model, length in itertools.product(models, config.seq_len):
            window_length(model.config, length)
    return models


def refuse_missing(name: str) -> None:
    """Refuse a path without a model.

    Raises:
        InputError: no model has that name, or it is a folder without weights.
    """
    refuse_no_model(name)
    found = (*WEIGHTS, ".index.json")  # what an index names is checked when it is read
    if is_folder(name) and not any(file.name.endswith(found) for file in Path(name).iterdir()):
        raise InputError(
            expected=f"weights in '{name}' ({', '.join(WEIGHTS)})",
            got="none",
            remedy="check that pruning finished, and pass the folder that holds model.safetensors",
        )


def _inspected(role: str, name: str) -> ModelUnderTest:
    # the config first: loading it caches the commit that a hub id is identified by
    return ModelUnderTest(role, name, config_of(name), model_identity(name))


def overflow_warnings(models: Sequence[ModelUnderTest], dtype: str | None) -> list[str]:
    """Warn of models whose activations may exceed 65504, the largest float16: those stored in bfloat16."""
    own = {model.name: model.config.dtype for model in models if dtype == "float16" and not is_gguf(model.name)}
    names = [name for name, configured in own.items() if stored_dtype(name, configured) == torch.bfloat16]
    return [f"--dtype float16: {name} is stored in bfloat16 and may overflow; prefer bfloat16" for name in names]


def load_model(name: str, dtype: str | None, device: str) -> Any:
    """Load a dense or pruned model in eval mode; ``dtype=None`` keeps the stored one (a .gguf file: bfloat16).

    Raises:
        InputError: the files do not hold the model's weights.
    """
    return load_pruned(name, device=device, dtype=None if dtype is None else DTYPES[dtype])


def tokenizer_of(config: EvaluationConfig, models: Sequence[ModelUnderTest]) -> Any:
    """Load the dense model's tokenizer if one is named, else the one saved with the measured model.

    Raises:
        InputError: no tokenizer, no BOS token with ``--add_bos``, or a vocabulary larger than that of a model.
    """
    tokenizer = load_tokenizer_of(config.base_model or config.model_path)
    if config.add_bos:
        bos_token(tokenizer)
    if config.task_names != (EFFICIENCY,):
        for model in models:
            for warning in check_vocabulary(model.config.get_text_config().vocab_size, tokenizer):
                LOG.warning("%s", warning)
    return tokenizer


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return a hash of the vocabulary, the special tokens and the tokens of a probe sentence."""
    probe = tokenizer("The quick brown fox\n\n  didn't jump 12345 times over naïve 日本.")["input_ids"]
    facts = [sorted(tokenizer.get_vocab().items()), tokenizer.all_special_tokens, probe]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
