"""Pruned folders in other versions of transformers, without hgsp: `make test-transformers` installs them.

``HGSP_TRANSFORMERS`` lists folders written by ``pip install --target FOLDER transformers==VERSION``.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import make_tiny, make_tokenizer
from hgsp.models.checkpoint import save_pruned
from hgsp.models.tokenizers import load_tokenizer
from hgsp.pruning.surgery import apply_plan
from plans import mixed_plan, plan_dropping

VERSIONS = [Path(folder) for folder in os.environ.get("HGSP_TRANSFORMERS", "").split(os.pathsep) if folder]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not VERSIONS, reason="HGSP_TRANSFORMERS is not set (make test-transformers)"),
]

ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
BASES = {"llama": "llama-8q4kv", "tied": "llama-9q3kv-tied", "qwen2": "qwen2-14q2kv", "mistral": "mistral-8q4kv"}
BASES["qwen3"] = "qwen3-8q2kv"
PLANS = {
    "": mixed_plan,
    "-without-attention": lambda model: plan_dropping(model, kv={0: range(model.config.num_key_value_heads)}),
}

#: Every child process: no hgsp, and a question about custom code is an error that no library catches.
CHILD = """
import builtins, sys, warnings
warnings.filterwarnings("ignore")
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("hgsp", "evaluation"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
class Asked(BaseException):
    pass
def ask(prompt=""):
    raise Asked(prompt)
builtins.input = ask
import torch, transformers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
VERSION = tuple(map(int, transformers.__version__.split(".")[:2]))
expected = torch.load("expected.pt", weights_only=True)
tokens = expected["tokens"]
folders = [name for name in expected if name != "tokens" and not name.endswith(":greedy")]
"""

LOAD = """
greedy = dict(attention_mask=torch.ones_like(tokens), max_new_tokens=8, min_new_tokens=8, do_sample=False)
static = dict(cache_implementation="static", disable_compile=True)
chunked = dict(prefill_chunk_size=7)
all_settings = {}, chunked, static, static | chunked, static
if (5, 0) <= VERSION < (5, 3):  # they prefill no model in chunks, dense ones neither
    all_settings = {}, static, static
for name in folders:
    model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True).eval()
    assert torch.equal(model(tokens).logits, expected[name]), name
    for settings in all_settings:
        try:
            generated = model.generate(tokens, pad_token_id=257, **greedy, **settings)
        except ValueError as error:
            assert VERSION < (4, 56) and "expected transformers 4.56 or newer for a static cache" in str(error), name
        except AttributeError as error:  # it reads the batch size of slots that no layer fills
            assert (5, 0) < VERSION < (5, 14) and "max_batch_size" in str(error), (name, error)
            assert name.endswith("-without-attention") and "cache_implementation" in settings
        else:
            assert torch.equal(generated, expected[name + ":greedy"]), (name, settings)
    model.save_pretrained("again")
    again = AutoModelForCausalLM.from_pretrained("again", trust_remote_code=True)
    assert torch.equal(again(tokens).logits, expected[name])
    classifier = AutoModelForSequenceClassification.from_pretrained(name, trust_remote_code=True, pad_token_id=257)
    assert torch.equal(classifier.model(tokens)[0], model.model(tokens)[0])
    assert classifier(tokens).logits.shape == (2, 2)
print("all equal")
"""

REFUSE = """
for name in folders:
    try:
        AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True)
    except ImportError as error:
        assert "expected transformers 4.54 or newer" in str(error) and "pip install" in str(error)
    else:
        raise AssertionError(name)
print("all refused")
"""

TOKENIZE = """
trust = {} if VERSION < (5, 0) else {"trust_remote_code": False}
for name in ("llama", "qwen2", "carried"):
    assert AutoTokenizer.from_pretrained(name, **trust)(TEXT).input_ids == IDS, name
print("all tokenized")
"""

WRITE_TOKENIZER = """
from transformers import PreTrainedTokenizerFast
tokenizer = PreTrainedTokenizerFast(tokenizer_file="bytes.json", bos_token="<s>", eos_token="</s>")
tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
tokenizer.save_pretrained("base")
print("written")
"""
TEXT = "Hello  world, it's é 你好!"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Pruned folders of every family, and ``expected.pt``: their logits and greedy continuations without a cache."""
    path = tmp_path_factory.mktemp("versions")
    tokens = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(1))
    expected = {"tokens": tokens}
    for name, base in BASES.items():
        for suffix, plan in PLANS.items():
            model = make_tiny(base, **({"rope_parameters": ROPE} if name == "llama" else {}))
            pruned = apply_plan(model, plan(model))
            (path / (name + suffix)).mkdir()
            save_pruned(pruned, make_tokenizer(), path / (name + suffix), with_bin=False)
            expected[name + suffix] = pruned(tokens).logits
            expected[f"{name}{suffix}:greedy"] = pruned.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=8,
                min_new_tokens=8,
                do_sample=False,
                use_cache=False,
                pad_token_id=257,
            )
    torch.save(expected, path / "expected.pt")
    make_tokenizer().backend_tokenizer.save(str(path / "bytes.json"))
    return path


def run(work, packages, code):
    outside = {key: value for key, value in os.environ.items() if not key.startswith(("HGSP_", "PYTHON", "PYTEST"))}
    own = {"HF_HOME": str(work / packages.name), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", CHILD + code],
        cwd=work,
        env=outside | own | {"PYTHONPATH": str(packages.resolve())},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=600,
        check=False,
    )


def version_in(packages):
    (metadata,) = packages.glob("transformers-*.dist-info")
    return tuple(map(int, metadata.name.removeprefix("transformers-").split(".")[:2]))


@pytest.mark.parametrize("packages", VERSIONS, ids=lambda packages: packages.name)
def test_models_load_and_generate_equal_or_are_refused_with_a_reason(work, packages):
    refused = version_in(packages) < (4, 54)
    done = run(work, packages, REFUSE if refused else LOAD)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("all refused" if refused else "all equal")


@pytest.mark.parametrize("packages", VERSIONS, ids=lambda packages: packages.name)
def test_tokenizers_load_without_a_question(work, packages):
    """Those of transformers 5 are carried over to version 4 and the other way round.

    Without hgsp, transformers 5 reads config.json of a model type it does not know before any tokenizer file, and asks
    unless ``trust_remote_code`` is given.
    """
    writer = next((other for other in VERSIONS if (4, 54) <= version_in(other) < (5, 0)), None)
    if writer is None:
        pytest.skip("needs a transformers 4 that can write a tokenizer")
    if not (work / "carried").exists():
        written = run(work, writer, WRITE_TOKENIZER)
        assert written.returncode == 0, written.stderr
        make_tiny("llama-8q4kv").save_pretrained(work / "base")
        model = make_tiny("llama-8q4kv")
        (work / "carried").mkdir()
        save_pruned(apply_plan(model, mixed_plan(model)), load_tokenizer(str(work / "base")), work / "carried")
        for name in TOKENIZER_FILES:
            assert (work / "carried" / name).read_bytes() == (work / "base" / name).read_bytes(), name
    ids = make_tokenizer()(TEXT)["input_ids"]
    done = run(work, packages, f"TEXT = {TEXT!r}\nIDS = {ids}\n{TOKENIZE}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("all tokenized")
