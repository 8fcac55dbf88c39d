"""GGUF files of SmolLM2-135M, pruned in every way, in llama.cpp: the same text and probabilities as transformers."""

import re

import pytest
import torch
from transformers import AutoModelForCausalLM

import run_global_pruning
from exporting import REAL_CASES, REAL_PLANS, RECOVERED, plan_named, pruned_folder, recovered
from hgsp.exports.export import export
from hgsp.exports.gguf_engine import ask_engine
from hgsp.models.checkpoint import load_pruned, load_tokenizer_of, save_pruned
from hgsp.models.geometry import geometry_of
from hgsp.models.tokenizers import load_tokenizer
from hgsp.pruning.plan import LayerKeep
from hgsp.pruning.surgery import apply_plan
from plans import plan_dropping, plan_of

pytest.importorskip("xllamacpp")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_cores")]

PROMPT = "The capital of France is Paris, and the"
PRUNE = "--recipe fast --dataset builtin --nsamples 4 --device cpu --skip_evaluation --no_bin"
#: Two candidates this close may change places when weights are rounded to float16.
NEAR_TIE = 6e-2


@pytest.fixture(scope="module")
def dense(real_model):
    return real_model("smollm2-135m")


@pytest.fixture(scope="module")
def pruned(dense, tmp_path_factory):
    """``pruned(percent)`` is the result of the recipe at 20 or 50 %."""
    results = tmp_path_factory.mktemp("results")
    flags = ["--base_model", dense, "--output_name", "p", "--pruning_ratio", "0.2", "0.5", "--results_dir", results]
    assert run_global_pruning.main([str(part) for part in (*flags, *PRUNE.split())]) == 0
    return lambda percent: results / f"p_{percent}"


@pytest.fixture(scope="module")
def cut(dense, tmp_path_factory):
    """``cut(make_plan)`` applies a plan made for the dense model, and saves the result."""

    def save(make_plan):
        model = AutoModelForCausalLM.from_pretrained(dense)
        folder = tmp_path_factory.mktemp("cut")
        save_pruned(apply_plan(model, make_plan(model)), load_tokenizer(str(dense)), folder, with_bin=False)
        return folder

    return save


def greedy_ties(model, tokens):
    """Generate 32 tokens; returns them and, of each, how far the runner-up is behind in log-probability."""
    outputs = model.generate(
        tokens, max_new_tokens=32, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    top = torch.stack([logits[0] for logits in outputs.logits]).topk(2).values
    return outputs.sequences[0, tokens.shape[1] :].tolist(), (top[:, 0] - top[:, 1]).tolist()


def assert_same_in_llama_cpp(folder, output, gguf_type, architecture):
    """The self-check compares tokens and log-probabilities (1e-3 at F32, 3e-2 at F16); this compares generated text."""
    written = export(folder, "gguf", output, gguf_type=gguf_type)
    assert written.exported.notes[0] == f"architecture {architecture}"
    check = written.exported.checks[-1]
    assert check.startswith("run in llama.cpp (xllamacpp): tokens of 3 texts equal")
    assert float(re.search(r"within (\S+) of transformers", check)[1]) <= {"f32": 1e-3, "f16": 3e-2}[gguf_type]
    tokens = load_tokenizer_of(folder)(PROMPT, return_tensors="pt")["input_ids"]
    model = load_pruned(folder, dtype=torch.float32)
    expected, margins = greedy_ties(model, tokens)
    answer = ask_engine(written.folder / written.exported.files[0], (), [tokens[0].tolist()], num_generated=32)
    certain = 32
    if gguf_type != "f32":
        certain = next((index for index, margin in enumerate(margins) if margin < NEAR_TIE), 32)
    got = list(answer.generated[0])
    assert got[:certain] == expected[: len(got)][:certain]
    assert len(got) == 32 or model.generation_config.eos_token_id in expected[: len(got) + 1]


@pytest.mark.parametrize(
    ("percent", "gguf_type"),
    [
        (20, "f16"),
        (50, "f32"),
        pytest.param(20, "f32", marks=pytest.mark.thorough),
        pytest.param(50, "f16", marks=pytest.mark.thorough),
    ],
)
def test_other_sizes_in_every_layer(pruned, tmp_path, percent, gguf_type):
    assert_same_in_llama_cpp(pruned(percent), tmp_path / "out", gguf_type, "deci")


@pytest.mark.thorough
@pytest.mark.parametrize(
    "gone",
    [{"layers": [10]}, {"kv": {0: range(3)}}, {"mlp": {10: range(1536)}}],
    ids=["layer", "first-attention", "mlp"],
)
def test_blocks_gone(cut, tmp_path, gone):
    architecture = "llama" if "layers" in gone else "deci"
    assert_same_in_llama_cpp(cut(lambda model: plan_dropping(model, **gone)), tmp_path / "out", "f32", architecture)


def uniform(model):
    """Two of three KV groups and three quarters of the channels in every layer."""
    geometry = geometry_of(model)
    return plan_of(geometry, [LayerKeep((0, 1), tuple(range(1152)))] * geometry.num_layers)


def attention_gone(model):
    return plan_dropping(model, kv={10: range(3)})


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("plan", "architecture"),
    [("20 %", "deci"), (uniform, "llama"), (attention_gone, "deci")],
    ids=["other-sizes", "uniform", "attention-gone"],
)
def test_recovered_models(pruned, cut, tmp_path, plan, architecture):
    folder = recovered(pruned(20) if plan == "20 %" else cut(plan), tmp_path / "recovered")
    assert_same_in_llama_cpp(folder, tmp_path / "out", "f32", architecture)


@pytest.mark.thorough
@pytest.mark.parametrize("case", REAL_CASES)
@pytest.mark.parametrize("name", ["qwen2.5-0.5b", "mistral-135m"])
def test_other_real_models(real_model, tmp_path, name, case):
    dense = str(real_model(name))
    model = AutoModelForCausalLM.from_pretrained(dense)
    kept = plan_named(model, RECOVERED.get(case, case), REAL_PLANS)
    folder = pruned_folder(model, kept, load_tokenizer(dense), tmp_path / "pruned")
    if case in RECOVERED:
        folder = recovered(folder, tmp_path / "recovered")
    assert_same_in_llama_cpp(folder, tmp_path / "out", "f32", "llama" if "uniform" in case else "deci")


@pytest.mark.thorough
def test_float16_may_differ_as_much_as_in_transformers(dense, tmp_path):
    """A model that magnitude wrecked amplifies rounding: transformers in float16 is as far from float32."""
    flags = ["--base_model", dense, "--output_name", "wrecked", "--pruning_ratio", "0.2", "--results_dir", tmp_path]
    flags += ["--temperature", "0", "--importance_method", "magnitude", "--device", "cpu"]
    flags += ["--skip_evaluation", "--no_bin"]
    assert run_global_pruning.main([str(part) for part in flags]) == 0
    written = export(tmp_path / "wrecked", "gguf", gguf_type="f16")
    found = float(re.search(r"within (\S+) of transformers", written.exported.checks[-1])[1])
    assert 3e-2 < found < 0.3
