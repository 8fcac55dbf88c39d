"""A finished checkpoint folder, read for export: config, sizes of every layer, and tensors one at a time.

R query heads per KV head
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hgsp.errors import InputError, one_line
from hgsp.models.configs import MODEL_TYPES, describe
from hgsp.models.families import FAMILIES, Family, family_of
from hgsp.models.fused_files import FusedFiles
from hgsp.models.geometry import LayerShape, geometry_of
from hgsp.models.places import is_file
from hgsp.models.refusals import refusing
from hgsp.models.safetensor_files import SafetensorFiles
from hgsp.models.stored_tensors import stored_dtype

#: Settings that exports write, beside the width; where ``config.json`` lacks one, its architecture's default holds.
_REQUIRED = ("hidden_size", "vocab_size", "max_position_embeddings", "num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True)
class ExportSource:
    """A dense or pruned model folder of a supported family; weights are read when asked for.

    Args:
        config: the content of ``config.json``.
        shapes: of every layer that is left; 0 for a block that the layer lacks.
        queries_per_kv: R, the same in every layer.
    """

    folder: Path
    config: Mapping[str, Any]
    family: Family
    shapes: tuple[LayerShape, ...]
    queries_per_kv: int
    head_dim: int

    @property
    def has_experts(self) -> bool:
        """Whether the model is a mixture of experts."""
        return self.family.experts is not None

    @property
    def untried(self) -> str:
        """The part for which no export is written and no engine but Transformers was tried; empty without one."""
        if self.has_experts:
            return "a mixture of experts"
        return "linear attention in some layers" if self.family.is_hybrid else ""

    @property
    def hidden_size(self) -> int:
        return int(self.config["hidden_size"])

    @property
    def is_uniform(self) -> bool:
        """Whether all layers have the same sizes, and no layer lacks a block.

        In a mixture of experts, layers without experts need only be like each other, and have the same attention.
        Layers with linear attention need only have the width of the others.
        """
        attending = {shape for shape in self.shapes if not shape.linear_attention}
        if len(attending) < len(set(self.shapes)):
            widths = {shape.mlp_width for shape in self.shapes}
            return len(attending) == len(widths) == 1 and min(*attending.pop().block_sizes) > 0
        plain = {shape for shape in attending if not shape.num_experts}
        alike = len({shape.num_kv_groups for shape in attending}) == 1 and len(plain) < 2 and len(attending - plain) < 2
        return alike and all(min(shape.block_sizes) > 0 for shape in attending)

    @property
    def ties_embeddings(self) -> bool:
        """Whether the head is the embedding; the files then hold no head."""
        return bool(self.config.get("tie_word_embeddings", False))

    @property
    def beyond_llama(self) -> str:
        """The part of the model that formats written for a Llama block have no place for; empty if there is none."""
        if self.family.beyond_llama:
            return self.family.beyond_llama
        window = self.config.get("sliding_window") if self.config.get("use_sliding_window", True) else None
        if window is not None:
            return f"a sliding window of {window} tokens"
        if self.rotated_part != 1.0:
            return f"rotary embeddings of a part of each head (partial_rotary_factor {self.rotated_part})"
        return "rotary factors that change with the length of the text" if self.has_longrope else ""

    @property
    def rotated_part(self) -> float:
        """The part of each head that rotary embeddings rotate."""
        return float(self.rope.get("partial_rotary_factor") or self.config.get("partial_rotary_factor") or 1.0)

    @property
    def has_longrope(self) -> bool:
        """Whether rotary factors change with the length of the text, in a family that has this."""
        return self.family.has_longrope and self.rope["rope_type"] != "default"

    @property
    def rope(self) -> Mapping[str, Any]:
        """The rope parameters in the form of transformers 5: ``rope_type``, ``rope_theta`` and those of the type."""
        rope = self.config.get("rope_parameters")
        if rope and "rope_theta" not in rope:  # by layer type
            rope = rope["full_attention"]
        if rope:
            return {"rope_type": "default", **rope}
        scaling = self.config.get("rope_scaling") or {}
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        return {"rope_theta": self.config.get("rope_theta", 10000.0), **scaling, "rope_type": kind}

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype of the checkpoint.

        Raises:
            InputError: the config names none, and the files cannot be read.
        """
        named = self.config.get("dtype") or self.config.get("torch_dtype")
        return stored_dtype(self.folder, named and getattr(torch, str(named)))

    @cached_property
    def tensors(self) -> SafetensorFiles:
        """The weights by their names in the pruned model; ``tensors.shapes`` lists them.

        Raises:
            InputError: files are missing or broken.
        """
        if not self.family.fused:
            return SafetensorFiles(self.folder)
        return FusedFiles(self.folder, describe(self.folder).skeleton)

    def read(self, name: str) -> Tensor:
        """Read a tensor in its stored dtype."""
        return self.tensors.read(name)


def read_source(path: str | Path) -> ExportSource:
    """Read config and sizes of a checkpoint folder, without weights.

    Raises:
        InputError: no model folder, an unsupported or quantised model, or sizes that make no sense.
    """
    folder = Path(path)
    file = folder / "config.json"
    if not is_file(file):
        raise InputError(
            expected="the folder of a pruned or dense model, with config.json", got=str(path), remedy="check the path"
        )
    found = describe(folder, lambda config: _check_family(config, file))
    family = family_of(found.config)
    with refusing(lambda error: _wrong_sizes(file, error)):
        config = {
            **{key: getattr(found.config, key) for key in (*_REQUIRED, family.width) if key not in found.raw},
            **found.raw,
        }
        is_plain = family.experts is None and not family.is_hybrid
        shapes = _shapes_of(config, family.width) if is_plain else geometry_of(found.skeleton).shapes
    return ExportSource(folder, config, family, shapes, _queries_per_kv(config), _head_dim(config))


def _wrong_sizes(file: Path, error: BaseException) -> InputError:
    return InputError(
        expected=f"the config of a causal language model in {file}", got=one_line(error), remedy="check the file"
    )


def _check_family(config: Mapping[str, Any], file: Path) -> None:
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
        raise InputError(
            expected=f"a model of {', '.join(FAMILIES)}, dense or pruned",
            got=f"model_type '{model_type}' in {file}",
            remedy="export a folder that this tool wrote",
        )
    if config.get("quantization_config") is not None:
        raise InputError(
            expected="plain floating-point weights",
            got=f"quantised weights in {file}",
            remedy="export before you quantise",
        )


def _shapes_of(config: Mapping[str, Any], width_key: str) -> tuple[LayerShape, ...]:
    per_layer = {int(index): sizes for index, sizes in (config.get("per_layer_config") or {}).items()}
    queries_per_kv = _queries_per_kv(config)
    shapes = []
    for index in range(config["num_hidden_layers"]):
        sizes = per_layer.get(index, {})
        skipped = sizes.get("skip", ())
        num_kv = sizes.get("num_key_value_heads", _num_kv(config))
        num_queries = sizes.get("num_attention_heads", config["num_attention_heads"])
        if "attention" not in skipped and num_queries != num_kv * queries_per_kv:
            raise ValueError(f"layer {index} has {num_queries} query heads for {num_kv} KV heads")
        width = sizes.get(width_key, config[width_key])
        shapes.append(LayerShape(0 if "attention" in skipped else num_kv, 0 if "mlp" in skipped else width))
    return tuple(shapes)


def _num_kv(config: Mapping[str, Any]) -> int:
    return int(config.get("num_key_value_heads") or config["num_attention_heads"])


def _queries_per_kv(config: Mapping[str, Any]) -> int:
    return int(config["num_attention_heads"]) // _num_kv(config)


def _head_dim(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
