"""Every recipe of docs/SERVING.md that a CPU can run, on a pruned model with layers of different sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from safetensors import safe_open
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from conftest import REPOSITORY, make_tiny, make_tokenizer
from exporting import WIDE_HEADS, pruned_folder
from hgsp.exports.export import export
from hgsp.exports.sizes import sizes_of
from hgsp.exports.source import read_source
from hgsp.models.checkpoint import load_pruned, save_pruned
from hgsp.pruning.surgery import apply_plan
from plans import plan_dropping

pytestmark = pytest.mark.filterwarnings("ignore")  # of the quantisers

#: Recipe -> script and flags, and the largest relative error of the logits [T, V], in the Frobenius norm. Logits that
#: have nothing in common differ by 1.4. Random weights lose more than trained ones: they have no small columns.
RECIPES = {
    "gptq": ("quantize_llmcompressor.py", "--scheme gptq --group_size 32 --nsamples 16 --seq_len 64", 0.5),
    "gptq8": ("quantize_llmcompressor.py", "--scheme gptq --bits 8 --group_size 32 --nsamples 16 --seq_len 64", 0.05),
    "fp8": ("quantize_llmcompressor.py", "--scheme fp8", 0.15),
    "int8": ("quantize_torchao.py", "--type int8", 0.05),
    "int4": ("quantize_torchao.py", "--type int4 --group_size 32", 0.6),
}
#: Recipe that vLLM serves on a CPU -> dtype that its kernel takes, and the largest difference of log-probabilities from
#: Transformers', which computes in float32 what vLLM rounds to that dtype, or to FP8 on the way.
SERVED = {"gptq": ("bfloat16", 0.2), "fp8": ("float32", 0.05)}
TOKENS = [(7 * index * index + 3 * index + 11) % 256 for index in range(24)]
VLLM_PYTHON = os.environ.get("VLLM_PYTHON", "")
needs_vllm = pytest.mark.skipif(not Path(VLLM_PYTHON).is_file(), reason="needs VLLM_PYTHON, a Python that has vLLM")


def pruned(folder, mlp):
    """A model with 64 to 96 channels per layer, less those of the plan."""
    model = make_tiny("llama-8q4kv", head_dim=16)
    plan = plan_dropping(model, kv={0: [1], 1: [2]}, mlp=mlp)
    folder.mkdir()
    save_pruned(apply_plan(model, plan), make_tokenizer(), folder, with_bin=False)
    return folder


@pytest.fixture
def aligned(tmp_path):
    """Widths of 64, 32 and 96."""
    return pruned(tmp_path / "aligned", {0: range(32), 1: range(64)})


@pytest.fixture
def odd(tmp_path):
    """Widths of 93, 32 and 96."""
    return pruned(tmp_path / "odd", {0: range(3), 1: range(64)})


@pytest.fixture
def wide(tmp_path):
    """Heads that the CPU kernels of vLLM accept, and widths of 64, 32 and 96."""
    model = make_tiny("llama-8q4kv", **WIDE_HEADS)
    plan = plan_dropping(model, kv={0: [1], 1: [2]}, mlp={0: range(32), 1: range(64)})
    return pruned_folder(model, plan, make_tokenizer(), tmp_path / "wide")


def run(script, *arguments):
    command = [sys.executable, REPOSITORY / "examples" / script, *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=REPOSITORY, check=False)


def quantized(recipe, folder, text_file):
    script, flags, _ = RECIPES[recipe]
    text = ["--text", text_file] if recipe.startswith("gptq") else []
    done = run(script, folder, folder.with_name(recipe), *flags.split(), *text)
    return done, folder.with_name(recipe)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_quantised_model_loads_and_is_close(recipe, aligned, text_file, tokens):
    done, folder = quantized(recipe, aligned, text_file)
    assert done.returncode == 0, done.stderr[-2000:]
    with torch.inference_mode():
        expected = load_pruned(aligned)(tokens).logits
        found = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu")(tokens).logits.float()
    error = float((found - expected).norm() / expected.norm())
    assert 0 < error < RECIPES[recipe][2]


def test_four_bits_are_packed(aligned, text_file):
    _, folder = quantized("gptq", aligned, text_file)
    with safe_open(folder / "model.safetensors", "pt") as weights:
        packed = weights.get_tensor("model.layers.0.mlp.down_proj.weight_packed")
    assert packed.shape == (64, 64 * 4 // 32)
    assert packed.dtype == torch.int32
    assert (folder / "modeling_hgsp.py").is_file()
    assert json.loads((folder / "config.json").read_text())["per_layer_config"]


@needs_vllm
@pytest.mark.parametrize("recipe", SERVED)
def test_vllm_on_a_cpu_computes_what_transformers_does(recipe, wide, text_file):
    dtype, limit = SERVED[recipe]
    done, folder = quantized(recipe, wide, text_file)
    assert done.returncode == 0, done.stderr[-2000:]
    answered = ask_vllm(folder, dtype)
    if "has no attribute 'cpu_gemm_wna16'" in answered.stderr:
        pytest.skip("vLLM has its kernel of 4 bits for CPUs with AVX-512 alone")
    assert answered.returncode == 0, answered.stderr[-3000:]
    found = torch.tensor(json.loads(answered.stdout.strip().splitlines()[-1])["log_probs"])
    with torch.inference_mode():
        expected = log_probs(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu"))
        before = log_probs(load_pruned(wide))
    difference = (found - expected).abs().max()
    assert difference < limit
    assert difference < (found - before).abs().max() / 2  # quantisation itself costs more


@needs_vllm
def test_vllm_on_a_cpu_has_no_kernel_for_gptq_in_8_bits(wide, text_file):
    done, folder = quantized("gptq8", wide, text_file)
    assert done.returncode == 0, done.stderr[-2000:]
    answered = ask_vllm(folder, "bfloat16")
    assert answered.returncode != 0
    assert "Quant type (uint8b128) not supported by CPUWNA16" in answered.stderr


def ask_vllm(folder, dtype):
    request = {"engine": "vllm", "folder": str(folder), "tokens": TOKENS, "num_greedy": 0, "dtype": dtype}
    return subprocess.run(
        [VLLM_PYTHON, "-m", "hgsp.exports.engine_log_probs", json.dumps([request])],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"},
        check=False,
    )


def log_probs(model):
    logits = model(torch.tensor([TOKENS])).logits[0, :-1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(TOKENS[1:])[:, None])[:, 0]


@pytest.mark.parametrize("recipe", ["fp8", "int8"])
def test_one_scale_per_channel_takes_odd_widths(recipe, odd, text_file):
    done, _ = quantized(recipe, odd, text_file)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("recipe", ["gptq", "gptq8", "int4"])
def test_groups_refuse_odd_widths(recipe, odd, text_file):
    """The reason why doctor names a multiple."""
    done, _ = quantized(recipe, odd, text_file)
    assert done.returncode != 0
    assert "93" in done.stderr


def test_llama_cpp_quantises_an_export_to_the_predicted_bytes(tmp_path, text_file):
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    folder = tmp_path / "pruned"
    folder.mkdir()
    model = make_tiny("llama-8q4kv", head_dim=16, vocab_size=300)
    plan = plan_dropping(model, kv={0: [1], 1: [2]}, mlp={0: range(3), 1: range(64)})
    save_pruned(apply_plan(model, plan), trained_tokenizer(text_file, 300), folder, with_bin=False)
    f16 = next(export(folder, "gguf", tmp_path / "gguf", self_check=False).folder.glob("*.gguf"))
    done = run("quantize_gguf.py", f16, tmp_path / "q4.gguf", "--type", "Q4_K_M")
    assert done.returncode == 0, done.stderr[-2000:]
    tensors = GGUFReader(tmp_path / "q4.gguf").tensors
    predicted = {size.form: size.weight_bytes for size in sizes_of(read_source(folder), 4)}
    assert sum(tensor.n_bytes for tensor in tensors) == predicted["llama.cpp Q4_K_M"]
    types = {tensor.name: tensor.tensor_type.name for tensor in tensors}
    assert types["blk.0.ffn_up.weight"] == "Q5_0"  # 64 columns fill no block of 256
    assert types["blk.0.ffn_down.weight"] == "F16"  # 93 fill none of 32


def trained_tokenizer(text_file, size):
    """Byte-level BPE with merges, which GGUF files need."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet)
    trained.train([str(text_file)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=trained, bos_token="<s>", eos_token="</s>")
