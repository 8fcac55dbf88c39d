"""GGUF files of tiny models: read back, run in llama.cpp, and refused before anything is written."""

import errno
import shutil
import sys
from collections import namedtuple

import gguf
import numpy as np
import pytest
import torch

from conftest import TINY, make_tiny
from gguf_tokenizers import RULES, byte_level, sentencepiece
from hgsp.cli.export import main
from hgsp.errors import InputError, NumericalError
from hgsp.exports.export import export
from hgsp.exports.gguf_architecture import architecture_of
from hgsp.exports.gguf_check import check_engine, check_tensors, largest_difference
from hgsp.exports.gguf_engine import ask_engine
from hgsp.exports.gguf_file import types_of, write_tensors
from hgsp.exports.gguf_layout import GgufTensor, tensors_of
from hgsp.exports.source import read_source
from hgsp.models.checkpoint import load_pruned
from hgsp.pruning.surgery import apply_plan
from plans import mixed_plan, plan_dropping

TYPES = ("f32", "f16", "bf16", "q8_0")


@pytest.fixture(scope="module")
def qwen2_tokenizer():
    return byte_level("qwen2")


@pytest.fixture
def checkpoint(tmp_path, qwen2_tokenizer):
    """``checkpoint(model)`` saves a model with a tokenizer that has merges, and returns its folder."""

    def save(model, tokenizer=qwen2_tokenizer):
        folder = tmp_path / "model"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


def wide(name, **changes):
    return make_tiny(name, **{"vocab_size": 400, **changes})


def fields_of(folder):
    (file,) = folder.glob("*.gguf")
    reader = gguf.GGUFReader(file)
    return {name: field.contents() for name, field in reader.fields.items()}, {t.name: t for t in reader.tensors}


def test_sizes_of_every_layer_are_in_the_file(checkpoint):
    model = wide("llama-8q4kv")
    pruned = apply_plan(wide("llama-8q4kv"), mixed_plan(model))
    written = export(checkpoint(pruned), "gguf", gguf_type="f32", self_check=False)
    fields, tensors = fields_of(written.folder)
    assert fields["general.architecture"] == "deci"
    assert fields["deci.attention.head_count"] == [8, 6, 4]
    assert fields["deci.attention.head_count_kv"] == [4, 3, 2]
    assert fields["deci.feed_forward_length"] == [48, 51, 54]
    assert fields["deci.attention.key_length"] == fields["deci.rope.dimension_count"] == 8
    assert fields["deci.context_length"] == 512
    assert fields["tokenizer.ggml.pre"] == "qwen2"
    assert fields["tokenizer.ggml.add_bos_token"] is False
    down = pruned.model.layers[1].mlp.down_proj.weight
    assert np.array_equal(tensors["blk.1.ffn_down.weight"].data, down.numpy())


def test_uniform_models_have_one_size(checkpoint):
    written = export(checkpoint(wide("qwen2-14q2kv")), "gguf", self_check=False)
    fields, tensors = fields_of(written.folder)
    assert fields["general.architecture"] == "llama"
    assert fields["llama.attention.head_count"] == 14
    assert {tensor.tensor_type.name for tensor in tensors.values()} == {"F16", "F32"}
    assert written.exported.files[0].name == "model-F16.gguf"


@pytest.mark.parametrize("gguf_type", TYPES)
def test_types_and_fallback(checkpoint, gguf_type):
    """Only the width of 51 in layer 1 is no multiple of 32 among the rows of MLPs of 96, 51 and 96 channels."""
    model = wide("llama-mqa")
    plan = plan_dropping(model, mlp={1: range(45)})
    written = export(checkpoint(apply_plan(model, plan)), "gguf", gguf_type=gguf_type)
    _, tensors = fields_of(written.folder)
    kinds = {name: tensor.tensor_type.name for name, tensor in tensors.items()}
    assert kinds["blk.1.attn_norm.weight"] == "F32"
    assert kinds["blk.1.ffn_up.weight"] == gguf_type.upper()
    assert kinds["blk.1.ffn_down.weight"] == ("F16" if gguf_type == "q8_0" else gguf_type.upper())
    fallback = [note for note in written.exported.notes if "matrices are F16" in note]
    assert fallback == (
        [
            "1 of 23 matrices are F16: their rows are no multiple of 32, such as blk.1.ffn_down.weight (51); "
            "prune with --mlp_multiple_of 32 or more"
        ]
        if gguf_type == "q8_0"
        else []
    )


def test_k_quants_are_explained(checkpoint):
    """Rows of 64 in 20 matrices, of 96 in two and of 51 in one."""
    model = wide("llama-mqa")
    written = export(checkpoint(apply_plan(model, plan_dropping(model, mlp={1: range(45)}))), "gguf", self_check=False)
    assert written.exported.notes[-1] == (
        "K-quants: llama-quantize model-F16.gguf model-Q4_K_M.gguf Q4_K_M (of 23 matrices, 22 fall back to types of 32 "
        "values, such as Q5_0, and 1 to F16: rows that are no multiple of 256 or 32)"
    )


def test_modelfile_and_commands(checkpoint):
    written = export(checkpoint(wide("llama-mqa", eos_token_id=1)), "gguf", self_check=False)
    assert (written.folder / "Modelfile").read_text() == 'FROM ./model-F16.gguf\nPARAMETER stop "<|end|>"\n'
    assert written.serve == (
        f"llama-server -m {written.folder}/model-F16.gguf",
        f"ollama create model -f {written.folder}/Modelfile",
    )


def test_large_matrices_are_written_in_pieces(checkpoint, monkeypatch):
    """The same bytes, whether a chunk holds a whole matrix or three rows."""
    folder = checkpoint(wide("llama-8q4kv"))
    whole = export(folder, "gguf", folder.parent / "whole", gguf_type="q8_0").folder / "model-Q8_0.gguf"
    monkeypatch.setattr("hgsp.exports.gguf_file.CHUNK_VALUES", 3 * 64)
    pieces = export(folder, "gguf", folder.parent / "pieces", gguf_type="q8_0").folder / "model-Q8_0.gguf"
    assert whole.read_bytes() == pieces.read_bytes()


# Runs in llama.cpp: float32 sums in another order, in models of three layers.
CLOSE = 2e-5


def run(folder, tmp_path, **settings):
    """Export in float32 and return the largest difference of log-probabilities; the self-check compares tokens."""
    pytest.importorskip("xllamacpp")
    written = export(folder, "gguf", tmp_path / "out", gguf_type="f32", **settings)
    assert written.exported.checks[-1].startswith("run in llama.cpp (xllamacpp): tokens of 3 texts equal")
    ids = list(range(3, 15))
    answer = ask_engine(written.folder / "model-F32.gguf", (), [ids[: length + 1] for length in range(len(ids))])
    return largest_difference(read_source(folder), ids, answer.likely)


@pytest.mark.parametrize("name", sorted(TINY))
def test_dense_models_run_in_llama_cpp(checkpoint, tmp_path, name):
    assert run(checkpoint(wide(name)), tmp_path) < CLOSE


@pytest.mark.parametrize("name", sorted(TINY))
def test_pruned_models_run_in_llama_cpp(checkpoint, tmp_path, name):
    """Other sizes in every layer; tied, since Qwen3 needs it."""
    model = wide(name, tie_word_embeddings=True)
    assert run(checkpoint(apply_plan(wide(name, tie_word_embeddings=True), mixed_plan(model))), tmp_path) < CLOSE


@pytest.mark.parametrize("name", ["llama-mha-biased", "qwen2-14q2kv", "qwen3-8q2kv"])
@pytest.mark.parametrize(
    "gone",
    [
        {"kv": [0]},
        {"kv": [1]},
        {"kv": [2]},
        {"mlp": [0]},
        {"mlp": [2]},
        {"kv": [0], "mlp": [1, 2]},
        {"layers": [1], "mlp": [0]},
    ],
    ids=str,
)
def test_models_without_blocks_run_in_llama_cpp(checkpoint, tmp_path, name, gone):
    model = wide(name, tie_word_embeddings=True)
    heads, width = model.config.num_key_value_heads, model.config.intermediate_size
    kv = {layer: range(heads) for layer in gone.get("kv", ())}
    mlp = {layer: range(width) for layer in gone.get("mlp", ())}
    plan = plan_dropping(model, kv=kv, mlp=mlp, layers=gone.get("layers", ()))
    assert run(checkpoint(apply_plan(model, plan)), tmp_path) < CLOSE


def test_refitted_output_biases_run_in_llama_cpp(checkpoint, tmp_path):
    model = wide("mistral-8q4kv")
    pruned = apply_plan(model, mixed_plan(model))
    pruned.config.writer_bias = True
    with_bias = type(pruned)(pruned.config).eval()
    with_bias.load_state_dict(pruned.state_dict(), strict=False)
    for layer in with_bias.model.layers:
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            torch.nn.init.normal_(linear.bias, std=0.1)
    assert run(checkpoint(with_bias), tmp_path) < CLOSE


ROPES = {
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
    "linear": {"factor": 4.0},
    "yarn": {"factor": 8.0, "original_max_position_embeddings": 64},
}


@pytest.mark.parametrize("rope_type", ROPES)
def test_scaled_rope_runs_in_llama_cpp(checkpoint, tmp_path, rope_type):
    rope = {"rope_type": rope_type, "rope_theta": 10_000.0, **ROPES[rope_type]}
    assert run(checkpoint(wide("llama-mqa", rope_parameters=rope)), tmp_path) < CLOSE


@pytest.mark.parametrize("rules", [*RULES, "always", "first", "legacy", "never"])
def test_tokenizers_agree_with_llama_cpp(checkpoint, tmp_path, rules):
    tokenizer = byte_level(rules, adds_bos=True) if rules in RULES else sentencepiece(rules)
    assert run(checkpoint(wide("llama-mqa"), tokenizer), tmp_path) < CLOSE


def test_generated_tokens_equal_those_of_transformers(checkpoint, tmp_path):
    pytest.importorskip("xllamacpp")
    model = wide("qwen2-14q2kv")
    folder = checkpoint(apply_plan(model, mixed_plan(model)))
    written = export(folder, "gguf", tmp_path / "out", gguf_type="f32", self_check=False)
    prompt = torch.arange(10, 20)[None]
    expected = load_pruned(folder).generate(prompt, max_new_tokens=16, do_sample=False, eos_token_id=1)
    answer = ask_engine(written.folder / "model-F32.gguf", (), [prompt[0].tolist()], num_generated=16)
    assert list(answer.generated[0]) == expected[0, 10:].tolist()


# Self-check.


def written_by_hand(folder, path, tensors, types):
    writer = gguf.GGUFWriter(path, "llama")
    write_tensors(writer, path, read_source(folder), tensors, types)


@pytest.mark.parametrize("gguf_type", TYPES)
def test_the_self_check_finds_rows_in_another_order(checkpoint, tmp_path, gguf_type):
    folder = checkpoint(wide("llama-8q4kv"))
    source = read_source(folder)
    name = "model.layers.0.self_attn.q_proj.weight"
    right, wrong = (GgufTensor("blk.0.attn_q.weight", (64, 64), (name,), heads) for heads in (8, 0))
    types = types_of([right], gguf_type)
    written_by_hand(folder, tmp_path / "wrong.gguf", [wrong], types)
    with pytest.raises(NumericalError, match=r"values of blk.0.attn_q.weight are not the checkpoint's"):
        check_tensors(tmp_path / "wrong.gguf", source, [right], types)
    written_by_hand(folder, tmp_path / "right.gguf", [right], types)
    assert "1 tensors" in check_tensors(tmp_path / "right.gguf", source, [right], types)


def test_the_self_check_finds_other_shapes_and_names(checkpoint, tmp_path):
    folder = checkpoint(wide("llama-8q4kv"))
    tensor = GgufTensor("a", (96, 64), ("model.layers.0.mlp.up_proj.weight",))
    written_by_hand(folder, tmp_path / "x.gguf", [tensor], {"a": "F32"})
    for other, message in ((GgufTensor("a", (48, 128)), "type or shape"), (GgufTensor("b", (96, 64)), "other tensors")):
        with pytest.raises(NumericalError, match=message):
            check_tensors(tmp_path / "x.gguf", read_source(folder), [other], {"a": "F32"})


def test_the_self_check_finds_a_model_that_computes_something_else(checkpoint, tmp_path, qwen2_tokenizer):
    pytest.importorskip("xllamacpp")
    written = export(checkpoint(wide("llama-mqa")), "gguf", tmp_path / "out", gguf_type="f32")
    other = read_source(checkpoint(wide("llama-mqa", seed=1)))
    with pytest.raises(NumericalError, match=r"log-probabilities in llama.cpp differ by"):
        check_engine(written.folder / "model-F32.gguf", other, qwen2_tokenizer, "f32")
    with pytest.raises(NumericalError, match="other tokens than transformers"):
        check_engine(written.folder / "model-F32.gguf", other, byte_level("gpt-2", adds_bos=True), "f32")


def test_a_file_that_the_engine_refuses_is_one_line(checkpoint, tmp_path):
    pytest.importorskip("xllamacpp")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(NumericalError, match=r"cannot run broken.gguf: .*error"):
        ask_engine(tmp_path / "broken.gguf", (), [])


def test_the_check_says_why_the_engine_did_not_run(checkpoint, tmp_path, monkeypatch):
    folder = checkpoint(wide("llama-mqa"))
    monkeypatch.setattr("hgsp.exports.gguf_check.is_installed", lambda: False)
    written = export(folder, "gguf", tmp_path / "a")
    assert written.exported.checks[-1].startswith("not run in llama.cpp: pip install xllamacpp")
    monkeypatch.setattr("hgsp.exports.gguf_check.is_installed", lambda: True)
    monkeypatch.setattr("hgsp.exports.gguf_check._available_memory", lambda: 1000)
    written = export(folder, "gguf", tmp_path / "b")
    assert "in float32 takes 0.00 GiB of memory" in written.exported.checks[-1]


# Refusals: one line, and nothing is left.


def refused(capsys, *argv):
    capsys.readouterr()  # progress bars of the libraries that made the model
    code = main([str(part) for part in argv])
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    return code, error


def assert_nothing_but(folder):
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_model_without_tokenizer_is_refused(tmp_path, capsys):
    folder = tmp_path / "model"
    make_tiny("llama-mqa").save_pretrained(folder)
    code, error = refused(capsys, folder, "--to", "gguf")
    assert code == 2
    assert "tokenizer files" in error
    assert_nothing_but(folder)


def test_weights_beyond_float16_are_refused(checkpoint, capsys):
    model = wide("llama-mqa")
    model.model.layers[2].mlp.up_proj.weight.data[3, 4] = 7e4
    folder = checkpoint(model)
    code, error = refused(capsys, folder, "--to", "gguf", "--no_check")
    assert code == 2
    assert "values between" in error
    assert "70000 in blk.2.ffn_up.weight" in error
    assert_nothing_but(folder)
    assert main([str(folder), "--to", "gguf", "--type", "bf16", "--no_check"]) == 0


def test_too_little_space_is_refused(checkpoint, capsys, monkeypatch):
    folder = checkpoint(wide("llama-mqa"))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 0, 10))
    code, error = refused(capsys, folder, "--to", "gguf")
    assert code == 2
    assert "free disk for model-F16.gguf" in error
    assert_nothing_but(folder)


def test_a_disk_that_fills_up_is_one_line(checkpoint, capsys, monkeypatch):
    folder = checkpoint(wide("llama-mqa"))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("hgsp.exports.gguf_file._align", full)
    code, error = refused(capsys, folder, "--to", "gguf")
    assert code == 1
    assert "No space left on device" in error
    assert_nothing_but(folder)


def test_a_missing_package_is_named(checkpoint, capsys, monkeypatch):
    folder = checkpoint(wide("llama-mqa"))
    monkeypatch.setitem(sys.modules, "gguf", None)
    code, error = refused(capsys, folder, "--to", "gguf")
    assert code == 2
    assert "pip install -e '.[gguf]'" in error
    assert_nothing_but(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"sliding_window": 128}, "full attention"), ({"hidden_act": "gelu"}, "SwiGLU")],
)
def test_models_that_llama_cpp_would_compute_otherwise_are_refused(checkpoint, changes, message):
    with pytest.raises(InputError, match=message):
        export(checkpoint(wide("mistral-8q4kv", **changes)), "gguf")


def test_the_largest_tensor_is_read_alone(checkpoint, monkeypatch):
    """Writing and checking never hold more than the stored tensors of one tensor of the file."""
    folder = checkpoint(wide("qwen3-8q2kv", tie_word_embeddings=True))
    source = read_source(folder)
    reads = []
    original = type(source).read
    monkeypatch.setattr(type(source), "read", lambda self, name: reads.append(name) or original(self, name))
    export(folder, "gguf", self_check=False)
    expected = [name for tensor in tensors_of(source, architecture_of(source)) for name in tensor.sources]
    assert reads == expected
