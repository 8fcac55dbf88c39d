"""Predicted sizes against files that were written, and against sums by hand."""

import math

import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from conftest import TINY, make_tiny
from hgsp.exports.decilm import export_decilm
from hgsp.exports.gguf_architecture import architecture_of, has_head_norms
from hgsp.exports.gguf_file import types_of
from hgsp.exports.gguf_layout import tensors_of
from hgsp.exports.result import ExportOptions
from hgsp.exports.sizes import planned_source, sizes_of, value_bytes_of
from hgsp.exports.source import ExportSource, read_source
from hgsp.models.checkpoint import save_pruned
from hgsp.models.geometry import LayerShape, geometry_of
from hgsp.pruning.surgery import apply_plan
from plans import mixed_plan, plan_dropping
from sources import extremes, source_of


def written(model, tokenizer, folder):
    folder.mkdir()
    save_pruned(model, tokenizer, folder, with_bin=False)
    return read_source(folder)


def stored_bytes(source):
    return sum(source.read(name).nbytes for name in source.tensors.shapes)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_safetensors_have_the_predicted_bytes(name, dtype, tokenizer, tmp_path):
    for number, plan_of in enumerate((plan_dropping, mixed_plan, lambda model: plan_dropping(model, layers=[1]))):
        dense = make_tiny(name).to(dtype)
        dense.config.dtype = dtype
        pruned = apply_plan(dense, plan_of(dense))
        source = written(pruned, tokenizer, tmp_path / str(number))
        assert value_bytes_of(source) == dtype.itemsize
        size = sizes_of(source, dtype.itemsize)[0]
        assert size.weight_bytes == stored_bytes(source)
        geometry = geometry_of(pruned)
        assert size.kv_bytes_per_token == geometry.kv_cache_bytes_per_token(geometry.shapes, dtype.itemsize)


def test_a_plan_is_predicted_as_its_result(tokenizer, tmp_path):
    dense = make_tiny("qwen2-14q2kv")
    plan = plan_dropping(dense, kv={0: [1], 2: [0, 1]}, mlp={0: range(3)}, layers=[1])
    source = written(apply_plan(dense, plan), tokenizer, tmp_path / "pruned")
    planned = planned_source(dense.config, geometry_of(dense), tuple(keep.shape for keep in plan.layers))
    assert planned.shapes == source.shapes
    assert sizes_of(planned, 4) == sizes_of(source, 4)


def test_biases_that_a_reconstruction_adds_are_counted():
    without, biased = source_of(), source_of(writer_bias=True)
    difference = sizes_of(biased, 2)[0].weight_bytes - sizes_of(without, 2)[0].weight_bytes
    assert difference == 2 * 2 * 4096 * 2  # two biases per layer, two layers, bfloat16


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("name", TINY)
def test_exports_have_the_predicted_bytes(name, number, tokenizer, tmp_path):
    """The tensors that the exports write, and the formats that they refuse."""
    model = make_tiny(name)
    pruned = apply_plan(model, list(extremes(model))[number])
    source = written(pruned, tokenizer, tmp_path / "pruned")
    predicted = {size.form: size.weight_bytes for size in sizes_of(source, 4)}
    assert ("DeciLM" in predicted) == (not has_head_norms(source))
    if "DeciLM" in predicted:
        export_decilm(source, tmp_path, ExportOptions("model", self_check=False))
        assert predicted["DeciLM"] == stored_bytes(ExportSource(tmp_path, {}, source.family, (), 1, 1))
    assert ("llama.cpp F16" in predicted) == (source.is_uniform or not has_head_norms(source))
    if "llama.cpp F16" in predicted:
        tensors = tensors_of(source, architecture_of(source))
        for kind in ("f16", "q8_0"):
            types = types_of(tensors, kind)
            total = sum(num_bytes(tensor.shape, types[tensor.name]) for tensor in tensors)
            assert predicted[f"llama.cpp {kind.upper()}"] == total


def num_bytes(shape, kind):
    values, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return math.prod(shape) // values * size


def named(source, form):
    return next(size for size in sizes_of(source, 2) if size.form == form)


def test_columns_that_fill_no_block_stay_at_f16_in_q8_0():
    """Widths of 11000 are no multiple of 32: down_proj keeps two bytes per weight."""
    odd, even = (named(source_of(((8, width),) * 2), "llama.cpp Q8_0") for width in (11000, 11008))
    channels = 4096 * 8 * 2  # gate_proj and up_proj of the eight channels in both layers
    assert even.weight_bytes - odd.weight_bytes == 2 * channels * 34 // 32 + math.floor(
        2 * 4096 * (11008 * 34 / 32 - 11000 * 2)
    )
    assert odd.note == "2 of 16 matrices: F16 for Q8_0"
    assert even.note == ""


def test_types_of_q4_k_m():
    """16 layers: the first and last eighth and every third between have v_proj and down_proj at Q6_K."""
    source = source_of(((8, 14336),) * 16)
    kv, down, rest = 1024 * 4096, 4096 * 14336, 2 * 4096 * 4096 + 1024 * 4096 + 2 * 4096 * 14336
    more = [0, 1, 4, 7, 10, 13, 14, 15]
    q6, q4 = 210 / 256, 144 / 256
    expected = sum((kv + down) * (q6 if layer in more else q4) + rest * q4 for layer in range(16))
    expected += 1024 * 4096 * (q6 + q4) + 4 * 33 * 4096  # head and embedding; norms in float32
    assert named(source, "llama.cpp Q4_K_M").weight_bytes == expected


def test_a_tied_embedding_is_the_head_in_q4_k_m():
    tied, untied = (named(source_of(tie_word_embeddings=tied), "llama.cpp Q4_K_M") for tied in (True, False))
    assert untied.weight_bytes - tied.weight_bytes == 1024 * 4096 * 144 // 256


def test_zero_blocks_of_llama_cpp_are_counted():
    """Layer 0 without attention gets one head of zeros, a layer without MLP one of 256 channels."""
    size = named(source_of(((0, 14336), (8, 0))), "llama.cpp F16")
    full = named(source_of(((8, 14336), (8, 14336))), "llama.cpp F16")
    attention, mlp = 2 * 4096 * 4096 + 2 * 1024 * 4096, 3 * 4096 * 14336
    zeros = 4 * 128 * 4096 + 3 * 4096 * 256
    assert full.weight_bytes - size.weight_bytes == 2 * (attention + mlp - zeros)
    assert size.kv_bytes_per_token == 2 * 128 * (1 + 8) * 2


def test_deci_pads_to_the_next_divisor_of_the_query_heads():
    size, stored = (
        named(source_of(((3, 14336), (8, 14336))), "DeciLM"),
        sizes_of(source_of(((3, 14336), (8, 14336))), 2)[0],
    )
    assert size.kv_bytes_per_token == 2 * 128 * (4 + 8) * 2
    padding = 2 * (32 - 12) * 128 * 4096 + 2 * (4 - 3) * 128 * 4096  # q and o; k and v
    assert size.weight_bytes - stored.weight_bytes == 2 * padding
    assert size.note.startswith("padding adds ")


def test_formats_that_cannot_hold_a_model_are_left_out():
    forms = {size.form for size in sizes_of(source_of(((7, 14336), (8, 14336)), "qwen3"), 2)}
    assert forms == {"Transformers, vLLM"}
    assert "llama.cpp F16" in {size.form for size in sizes_of(source_of(family="qwen3"), 2)}


def test_a_removed_layer_has_no_size():
    dense = make_tiny("llama-8q4kv")
    shapes = (LayerShape(4, 96), LayerShape(0, 0), LayerShape(4, 96))
    assert planned_source(dense.config, geometry_of(dense), shapes).shapes == (LayerShape(4, 96),) * 2
