"""New processes: fast help, exit codes of the real script, and loading with and without hgsp."""

import copy
import json
import os
import subprocess
import sys
import time

import pytest
import torch

from conftest import REPOSITORY, make_tiny
from experts import make_moe, uneven_plan
from hgsp.models.checkpoint import save_pruned
from hgsp.models.geometry import geometry_of
from hgsp.pruning.plan import LayerKeep
from hgsp.pruning.surgery import apply_plan
from plans import mixed_plan, plan_dropping, plan_of

#: Make hgsp and evaluation impossible to import, however they are installed.
WITHOUT_HGSP = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("hgsp", "evaluation"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""

#: Logits of ``folder`` must be those in ``expected.pt``, bit for bit.
COMPARE = """
import torch
from transformers import AutoModelForCausalLM
expected = torch.load("expected.pt", weights_only=True)
def check(folder, **kwargs):
    model = AutoModelForCausalLM.from_pretrained(folder, **kwargs)
    assert torch.equal(model(expected["tokens"]).logits, expected[folder]), folder
    return model
"""


@pytest.fixture
def python(tmp_path):
    """``python(*arguments)`` runs a new interpreter in ``tmp_path``, without network, and returns its result."""

    def run(*arguments):
        outside = {key: value for key, value in os.environ.items() if not key.startswith(("HGSP_", "PYTHON", "PYTEST"))}
        own = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        own["PYTHONPATH"] = str(REPOSITORY)  # this checkout, whatever is installed
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=tmp_path,
            env=outside | own,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=300,
            check=False,
        )

    return run


@pytest.fixture
def folders(tmp_path, tokenizer, tokens):
    """``uniform``: all layers have the same size; in the others they differ. ``expected.pt``: the logits of each."""
    expected = {"tokens": tokens}
    for name, base in (
        ("ragged", "llama-9q3kv-tied"),
        ("qwen2", "qwen2-14q2kv"),
        ("qwen3", "qwen3-8q2kv"),
        ("gemma3", "gemma3"),
        ("experts", "qwen3-moe-mixed"),
        ("uniform", "llama-8q4kv"),
    ):
        model = make_moe(base) if name == "experts" else make_tiny(base)
        plan = uneven_plan(model) if name == "experts" else mixed_plan(model)
        if name == "uniform":  # three KV groups: six query heads, which LlamaConfig refuses at hidden size 64
            plan = plan_of(geometry_of(model), [LayerKeep((0, 1, 3), tuple(range(40)))] * 3)
        pruned = apply_plan(model, plan)
        (tmp_path / name).mkdir()
        save_pruned(pruned, tokenizer, tmp_path / name)
        expected[name] = pruned(tokens).logits
    torch.save(expected, tmp_path / "expected.pt")
    return tmp_path


@pytest.mark.parametrize("script", ["run_global_pruning", "finetune_lora", "hgsp.cli.main"])
def test_help_is_quick_and_imports_neither_torch_nor_transformers(python, script):
    heavy = "import sys; assert not {'torch', 'transformers', 'numpy'} & set(sys.modules), 'heavy import'"
    if script == "hgsp.cli.main":
        call = "from hgsp.cli.main import main; assert main(['--help']) == 0"
    else:
        call = f"import {script}\ntry: {script}.main(['--help'])\nexcept SystemExit as stop: assert stop.code == 0"
    start = time.monotonic()
    done = python("-c", f"{call}\n{heavy}")
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
    assert time.monotonic() - start < 3  # the contract's promise


def test_the_script_exits_with_2_and_one_line_for_bad_input(python, tmp_path):
    """Refusals by argparse and by us."""
    script = REPOSITORY / "run_global_pruning.py"
    done = python(script, "--pruning_ratio", "0.2")
    assert done.returncode == 2
    assert "--base_model" in done.stderr
    flags = ("--base_model", "m", "--output_name", "o", "--pruning_ratio", "0.2")
    done = python(script, *flags, "--dataset", "wikitext103")
    assert done.returncode == 2
    assert done.stderr.startswith("error: expected --dataset to be one of wikitext2, ptb, c4, builtin")
    assert done.stderr.count("\n") == 1
    done = python(script, *flags, "--dataset", "builtin", "--finetune_lr", "0", "--skip_evaluation")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--finetune_lr" in done.stderr
    assert not (tmp_path / "results").exists()


def test_the_script_prunes_from_any_folder_into_results(python, saved, tmp_path):
    """A new process that imports only hgsp.evaluation loads the result and measures the same perplexity."""
    base = saved(make_tiny("llama-8q4kv"))
    flags = ("--base_model", base, "--output_name", "TINY/p20", "--pruning_ratio", "0.2", "--temperature", "0.0")
    quick = ("--nsamples", "2", "--seq_len", "32", "--dataset", "builtin", "--eval_tasks", "builtin")
    done = python(
        REPOSITORY / "run_global_pruning.py", *flags, *quick, "--eval_max_windows", "1", "--eval_seq_len", "64"
    )
    assert done.returncode == 0, done.stderr
    assert "next: " in done.stderr
    snippet = """
from hgsp.evaluation.metrics.ppl import PPLMetric
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("results/TINY/p20")
tokenizer = AutoTokenizer.from_pretrained("results/TINY/p20")
ppl = PPLMetric(model, tokenizer, datasets=["builtin"], device="cpu", seq_len=64, max_windows=1)
import json
measured = json.load(open("results/TINY/p20/pruning_analysis.json"))["evaluation"]["after"]["builtin"]["ppl"]
assert ppl["builtin"] == measured, (ppl, measured)
print("same")
"""
    done = python("-c", snippet)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("same")


def test_a_fresh_process_loads_bit_equal_wherever_the_bin_was_moved(python, folders):
    """hgsp is imported before transformers; the .bin alone loads from another folder under another name."""
    (folders / "moved").mkdir()
    (folders / "ragged" / "pruned_model.bin").rename(folders / "moved" / "other.bin")
    done = python(
        "-c",
        "import hgsp\n"
        + COMPARE
        + """
for folder in ("ragged", "qwen2", "qwen3", "experts", "uniform"):
    check(folder)
from hgsp.models.checkpoint import load_pruned
model = load_pruned("moved/other.bin")
assert torch.equal(model(expected["tokens"]).logits, expected["ragged"])
""",
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "order",
    [
        "import transformers; import hgsp",
        *(
            pytest.param(order, marks=pytest.mark.thorough)
            for order in (
                "import hgsp; from transformers import LlamaForCausalLM",  # before hgsp registers its Auto classes
                COMPARE + "\nimport evaluation",
                "import hgsp; from transformers.modeling_layers import GradientCheckpointingLayer",
                "import hgsp; from transformers import AutoConfig; AutoConfig.from_pretrained('ragged')",
                "from hgsp.models.decoder import Decoder",  # our own classes come before the Auto classes
            )
        ),
    ],
)
def test_the_order_of_imports_does_not_matter(python, folders, order):
    done = python("-c", f"{order}\n{COMPARE}\ncheck('ragged')")
    assert done.returncode == 0, done.stderr


def test_without_hgsp_trusting_the_folders_own_file_is_enough(python, folders):
    """With trust_remote_code it is bit-equal, moved or not; a stock result needs nothing; generation works."""
    (folders / "qwen2").rename(folders / "moved")
    done = python(
        "-c",
        WITHOUT_HGSP
        + COMPARE
        + """
check("uniform")
expected["moved"] = expected["qwen2"]
for folder in ("ragged", "moved", "qwen3", "gemma3", "experts"):
    model = check(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules")
model.generate(expected["tokens"], max_new_tokens=2, do_sample=False, pad_token_id=257)
try:
    import hgsp
except ModuleNotFoundError:
    print("hgsp was not there")
""",
    )
    assert done.returncode == 0, done.stderr
    assert "hgsp was not there" in done.stdout


def test_without_hgsp_and_without_trust_it_fails_and_never_gives_random_weights(python, folders):
    """The message names the remedy."""
    done = python("-c", f"{WITHOUT_HGSP}{COMPARE}\ncheck('ragged')")
    assert done.returncode == 1
    assert "trust_remote_code=True" in done.stderr


@pytest.mark.parametrize(
    "order",
    [
        "import hgsp, peft",
        *(
            pytest.param(order, marks=pytest.mark.thorough)
            for order in ("import peft; import hgsp", "import peft.utils.constants, hgsp")
        ),
    ],
)
def test_peft_knows_the_target_modules_of_our_model_types(python, folders, order):
    """``LoraConfig()`` without target modules works, whichever is imported first; hgsp alone imports no PEFT."""
    pytest.importorskip("peft", reason="the extra hgsp[finetune] is not installed")
    done = python(
        "-c",
        f"import sys\n{order}\n"
        """
from transformers import AutoModelForCausalLM
for folder, method in (("ragged", peft.LoraConfig), ("qwen2", peft.LoHaConfig), ("qwen3", peft.LoraConfig)):
    adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), method())
    assert {name.rpartition(".")[2] for name in adapted.targeted_module_names} == {"q_proj", "v_proj"}, folder
""",
    )
    assert done.returncode == 0, done.stderr
    alone = python("-c", "import hgsp, transformers, sys; assert 'peft' not in sys.modules")
    assert alone.returncode == 0, alone.stderr


def test_peft_passes_over_layers_that_lack_a_projection(make):
    """In layers without attention or MLP, whatever names are asked for; each of the others gets its adapters."""
    peft = pytest.importorskip("peft", reason="the extra hgsp[finetune] is not installed")
    model = make("llama-8q4kv")
    pruned = apply_plan(model, plan_dropping(model, kv={0: range(4)}, mlp={1: range(96)}))
    linears = {name for name, module in pruned.named_modules() if isinstance(module, torch.nn.Linear)} - {"lm_head"}
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    wanted = {"all-linear": linears, None: {name for name in linears if name.endswith(("q_proj", "v_proj"))}}
    for targets, expected in [*wanted.items(), (tuple(names), linears)]:
        targets = list(targets) if isinstance(targets, tuple) else targets
        adapted = peft.LoraModel(copy.deepcopy(pruned), {"default": peft.LoraConfig(target_modules=targets)}, "default")
        assert set(adapted.targeted_module_names) == expected


def test_the_vllm_plugin_puts_our_classes_where_vllm_looks(python):
    done = python(
        "-c",
        """
from hgsp.models.vllm_plugin import register
register()
import transformers
assert transformers.HgspLlamaForCausalLM.__name__ == "HgspLlamaForCausalLM"
assert transformers.AutoModel._model_mapping[transformers.HgspQwen3Config] is transformers.HgspQwen3Model
""",
    )
    assert done.returncode == 0, done.stderr


def test_without_hgsp_the_tokenizer_loads_for_llama3_rope_whatever_is_answered(python, tmp_path, tokenizer):
    """Transformers 5 asks about the model's code first; without consent it goes on with a bare config."""
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    model = make_tiny("llama-8q4kv", rope_parameters=rope | {"original_max_position_embeddings": 64})
    (tmp_path / "pruned").mkdir()
    save_pruned(apply_plan(model, mixed_plan(model)), tokenizer, tmp_path / "pruned", with_bin=False)
    load = """
from transformers import AutoTokenizer
for answer in ({}, {"trust_remote_code": False}, {"trust_remote_code": True}):
    print("answer", AutoTokenizer.from_pretrained("pruned", **answer)("a")["input_ids"])
"""
    done = python("-c", WITHOUT_HGSP + load)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"answer {tokenizer('a')['input_ids']}") == 3
    unanswered, *answered = done.stdout.split("answer ")
    assert "custom code" in unanswered
    assert "custom code" not in "".join(answered)


TRUSTED = ("-m", "lm_eval", "--model_args", "pretrained=ragged,dtype=float32,trust_remote_code=True")
REGISTERED = (
    *("-c", "import hgsp; from lm_eval.__main__ import cli_evaluate; cli_evaluate()"),
    *("--model_args", "pretrained=ragged,dtype=float32"),
)


@pytest.mark.parametrize(
    "command",
    [TRUSTED, pytest.param(REGISTERED, marks=pytest.mark.thorough)],
    ids=["trusted", "registered"],
)
def test_lm_eval_runs_a_pruned_folder(python, folders, command):
    pytest.importorskip("lm_eval", reason="the extra hgsp[eval] is not installed")
    (folders / "tasks").mkdir()
    rows = [{"question": "Is water wet?", "answer": 0}, {"question": "Is fire cold?", "answer": 1}]
    (folders / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folders / "tasks" / "tiny.yaml").write_text(
        "task: tiny\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\ntest_split: test\n"
        'output_type: multiple_choice\ndoc_to_text: "{{question}}"\ndoc_to_choice: ["yes", "no"]\n'
        'doc_to_target: "{{answer}}"\nmetric_list: [{metric: acc}]\n'
    )
    flags = ("--model", "hf", "--include_path", "tasks", "--tasks", "tiny", "--device", "cpu")
    done = python(*command, *flags)
    assert done.returncode == 0, done.stderr
    assert "|tiny" in done.stdout
