"""GGUF files for llama.cpp, Ollama and what is built on them, with a Modelfile."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hgsp.environment import install_command
from hgsp.errors import InputError, one_line
from hgsp.exports.gguf_architecture import Architecture, architecture_of
from hgsp.exports.gguf_check import check_engine, check_tensors
from hgsp.exports.gguf_file import types_of, write_tensors
from hgsp.exports.gguf_layout import GgufLayer, GgufTensor, layers_of, tensors_of
from hgsp.exports.gguf_rope import add_rope, check_rope
from hgsp.exports.gguf_tokenizer import Vocabulary, add_vocabulary, read_vocabulary
from hgsp.exports.result import Exported, ExportOptions
from hgsp.exports.source import ExportSource
from hgsp.models.prunable import check_prunable

#: Values that share scales in the K-quants, along a row, and in the types that take their place for other rows.
K_QUANT_BLOCK, SMALL_BLOCK = 256, 32


def export_gguf(source: ExportSource, folder: Path, options: ExportOptions) -> Exported:
    """Write ``<name>-<TYPE>.gguf`` and a Modelfile into a folder; about one tensor is in memory at a time.

    Raises:
        InputError: the model, its rope or its tokenizer has no form in GGUF, or the package ``gguf`` is missing.
        NumericalError: the self-check found a difference.
    """
    writer_class = _writer_class()
    check_prunable(source.config)
    check_rope(source)
    if (activation := source.config.get("hidden_act", "silu")) != "silu":
        raise InputError(expected="SwiGLU MLPs for a GGUF file", got=activation, remedy="serve the folder with vLLM")
    architecture = architecture_of(source)
    vocabulary, tokenizer = read_vocabulary(source)
    layers, tensors = layers_of(source, architecture), tensors_of(source, architecture)
    types = types_of(tensors, options.gguf_type)
    file = Path(f"{options.name}-{options.gguf_type.upper()}.gguf")
    writer = writer_class(folder / file, architecture.name)
    _add_model(writer, source, layers, options)
    add_rope(writer, source)
    add_vocabulary(writer, vocabulary)
    write_tensors(writer, folder / file, source, tensors, types)
    checks: tuple[str, ...] = ()
    if options.self_check:
        checks = (check_tensors(folder / file, source, tensors, types),)
        checks += check_engine(folder / file, source, tokenizer, options.gguf_type)
    (folder / "Modelfile").write_text(_modelfile(file, vocabulary), encoding="utf-8")
    serve = (
        f"llama-server -m {{folder}}/{file}",
        f"ollama create {_ollama_name(options.name)} -f {{folder}}/Modelfile",
    )
    notes = (*vocabulary.warnings, *_notes(file, architecture, layers, tensors, types, options))
    return Exported((file, Path("Modelfile")), serve, notes, checks)


def _writer_class() -> Any:
    try:
        from gguf import GGUFWriter
    except ImportError as error:
        raise InputError(
            expected="the package that writes GGUF files", got=one_line(error), remedy=install_command("gguf")
        ) from error
    return GGUFWriter


def _add_model(writer: Any, source: ExportSource, layers: Sequence[GgufLayer], options: ExportOptions) -> None:
    """Write the keys of the model's sizes: one value where all layers agree, else one per layer."""
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    def per_layer(values: list[int]) -> int | list[int]:
        return values[0] if len(set(values)) == 1 else values

    writer.add_name(options.name)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    types = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
    writer.add_file_type(LlamaFileType[types[options.gguf_type]])
    writer.add_vocab_size(int(source.config["vocab_size"]))
    writer.add_context_length(int(source.config["max_position_embeddings"]))
    writer.add_embedding_length(source.hidden_size)
    writer.add_block_count(len(layers))
    writer.add_feed_forward_length(per_layer([layer.mlp_width for layer in layers]))
    writer.add_head_count(per_layer([layer.num_heads for layer in layers]))
    writer.add_head_count_kv(per_layer([layer.num_kv_heads for layer in layers]))
    writer.add_key_length(source.head_dim)
    writer.add_value_length(source.head_dim)
    writer.add_layer_norm_rms_eps(float(source.config.get("rms_norm_eps", 1e-6)))


def _modelfile(file: Path, vocabulary: Vocabulary) -> str:
    """Return the Modelfile. Without a TEMPLATE, Ollama uses the chat template in the file."""
    ends = [
        vocabulary.tokens[vocabulary.special_ids[name]] for name in ("eos", "eot") if name in vocabulary.special_ids
    ]
    stops = "".join(f"PARAMETER stop {json.dumps(end, ensure_ascii=False)}\n" for end in ends)
    return f"FROM ./{file}\n{stops}"


def _ollama_name(name: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._") or "pruned"


def _notes(
    file: Path,
    architecture: Architecture,
    layers: Sequence[GgufLayer],
    tensors: Sequence[GgufTensor],
    types: Mapping[str, str],
    options: ExportOptions,
) -> tuple[str, ...]:
    matrices = [tensor for tensor in tensors if len(tensor.shape) == 2]
    notes = [f"architecture {architecture.name}"]
    zero_mlps, zero_heads = sum(layer.zero_mlp for layer in layers), sum(layer.zero_heads for layer in layers)
    if zero_mlps or zero_heads:
        notes.append(f"zeros where llama.cpp needs a block: {zero_mlps} MLPs, {zero_heads} attention heads")
    if fallbacks := [tensor for tensor in matrices if types[tensor.name] == "F16" and options.gguf_type == "q8_0"]:
        notes.append(
            f"{len(fallbacks)} of {len(matrices)} matrices are F16: their rows are no multiple of {SMALL_BLOCK}, such "
            f"as {fallbacks[0].name} ({fallbacks[0].shape[1]}); prune with --mlp_multiple_of {SMALL_BLOCK} or more"
        )
    return (*notes, _k_quants(file, matrices, options))


def _k_quants(file: Path, matrices: Sequence[GgufTensor], options: ExportOptions) -> str:
    """Return how to quantise further, and how many matrices the K-quants cannot divide into blocks."""
    if options.gguf_type == "q8_0":
        return "K-quants: export again with --type f16 and use llama-quantize"
    small = sum(tensor.shape[1] % K_QUANT_BLOCK != 0 and tensor.shape[1] % SMALL_BLOCK == 0 for tensor in matrices)
    none = sum(tensor.shape[1] % SMALL_BLOCK != 0 for tensor in matrices)
    return (
        f"K-quants: llama-quantize {file} {options.name}-Q4_K_M.gguf Q4_K_M (of {len(matrices)} matrices, {small} fall "
        f"back to types of {SMALL_BLOCK} values, such as Q5_0, and {none} to F16: rows that are no multiple of "
        f"{K_QUANT_BLOCK} or {SMALL_BLOCK})"
    )
