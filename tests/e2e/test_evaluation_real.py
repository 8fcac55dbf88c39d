"""Evaluation of SmolLM2-135M on real text: equal to independent computations and to the harness itself, in every way.

Few items: what is checked is agreement, not the model.
"""

import copy
import json
import math
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import REPOSITORY
from evaluation import run_evaluation
from hgsp.evaluation.metrics.harness import load_task, run_task
from hgsp.evaluation.metrics.lambada import LAMBADA
from hgsp.evaluation.metrics.ppl import PPLMetric
from hgsp.evaluation.metrics.zeroshot import ZERO_SHOT, read_processed_hellaswag
from hgsp.models.checkpoint import save_pruned
from hgsp.models.geometry import geometry_of
from hgsp.pruning.surgery import apply_plan
from plans import plan_dropping
from reports import CALIBRATION, pruning

pytestmark = pytest.mark.slow
pytest.importorskip("lm_eval", reason="the extra hgsp[eval] is not installed")

SPECS = {**ZERO_SHOT, "lambada": LAMBADA}
ITEMS = 6


@pytest.fixture(scope="module")
def smollm(real_model):
    return real_model("smollm2-135m")


@pytest.fixture(scope="module")
def model(smollm):
    return AutoModelForCausalLM.from_pretrained(smollm, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def real_tokenizer(smollm):
    return AutoTokenizer.from_pretrained(smollm)


@pytest.fixture(scope="module")
def cut(smollm, real_tokenizer, tmp_path_factory):
    """``cut(share)`` is the folder of the model without the last ``share`` of every layer's MLP channels: bad, and fast
    to make."""

    def folder(share):
        path = tmp_path_factory.mktemp("cut")
        model = AutoModelForCausalLM.from_pretrained(smollm)
        shapes = geometry_of(model).shapes
        dropped = {
            layer: range(int((1 - share) * shape.mlp_width), shape.mlp_width) for layer, shape in enumerate(shapes)
        }
        save_pruned(apply_plan(model, plan_dropping(model, mlp=dropped)), real_tokenizer, path)
        return path

    return folder


def padding(tokenizer, side):
    padded = copy.deepcopy(tokenizer)
    padded.pad_token, padded.padding_side = padded.eos_token, side
    return padded


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def hub_rows(name, data_dir):
    """The hub's rows, rebuilt from the official files."""
    if name == "lambada":
        return lines(data_dir / "lambada/lambada_test.jsonl")
    if name == "piqa":
        labels = (data_dir / "tasks/piqa_valid-labels.lst").read_text().split()
        return [
            dict(row, label=int(label))
            for row, label in zip(lines(data_dir / "tasks/piqa_valid.jsonl"), labels, strict=True)
        ]
    return [
        {
            "question": row["question"]["stem"],
            "choices": {key: [choice[key] for choice in row["question"]["choices"]] for key in ("text", "label")},
            "answerKey": row["answerKey"],
        }
        for row in lines(data_dir / "tasks/arc_easy_test.jsonl")
    ]


def test_perplexity_of_wikitext2_equals_ten_lines(model, real_tokenizer, data_dir):
    """Within 1e-4 of an independent computation that shares only the model with ours."""
    raw = (data_dir / "wikitext2" / "wiki.test.raw").read_bytes().decode().split("\n")[:-1]
    text = "\n\n".join((line + "\n") if line.strip() else "" for line in raw)
    ids = torch.tensor(real_tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    nll = 0.0
    for start in range(0, 4 * 256, 256):
        window = ids[None, start : start + 256]
        with torch.no_grad():
            nll += model(window, labels=window).loss.item() * 255
    metric = PPLMetric(model, real_tokenizer, seq_len=256, max_windows=4, data_dir=data_dir, batch_size=2)
    assert metric["wikitext2"] == pytest.approx(math.exp(nll / (4 * 255)), rel=1e-4)
    assert metric.details["wikitext2"].split == "wikitext-2-raw-v1/test"


def test_perplexity_does_not_depend_on_batch_size_or_padding_side(model, real_tokenizer, data_dir):
    found = [
        PPLMetric(model, side, seq_len=64, max_windows=6, data_dir=data_dir, batch_size=size)["wikitext2"]
        for side in (padding(real_tokenizer, "left"), padding(real_tokenizer, "right"))
        for size in (1, 4)
    ]
    assert found == pytest.approx([found[0]] * 4, rel=1e-4)  # float32, other batch shapes


@pytest.mark.parametrize(
    "name",
    ["lambada", *(pytest.param(name, marks=pytest.mark.thorough) for name in ("piqa", "arc_easy"))],
)
def test_equals_simple_evaluate_on_the_same_items(name, model, real_tokenizer, data_dir, monkeypatch):
    """The harness reads the hub's rows on its own path, ours reads the local files."""
    import datasets
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    rows = datasets.Dataset.from_list(hub_rows(name, data_dir))
    splits = dict.fromkeys(("train", "validation", "test"), rows)
    monkeypatch.setattr(datasets, "load_dataset", lambda *arguments, **named: splits)
    lm = HFLM(pretrained=model, tokenizer=copy.deepcopy(real_tokenizer), backend="causal", batch_size=2)
    theirs = simple_evaluate(lm, tasks=[SPECS[name].name], limit=ITEMS, bootstrap_iters=0)["results"]
    task = load_task(SPECS[name], data_dir)
    for size, side in ((1, "left"), (3, "right"), (12, "left")):
        found = run_task(task, model, padding(real_tokenizer, side), batch_size=size, limit=ITEMS)
        for metric, (ours, _, _) in SPECS[name].metrics.items():
            expected = theirs[SPECS[name].name][f"{metric},none"]
            # accuracies are identical; a perplexity's float32 sums differ by batch shape
            assert found[ours].value == (pytest.approx(expected, rel=1e-4) if metric == "perplexity" else expected)


def test_processed_hellaswag_is_what_the_harness_makes_of_the_official_rows(data_dir):
    """The two local files share some items: on those the harness's preparation of one equals the other, but for one
    thing, which the protocol says: where a title ends in a full stop the harness doubles it."""
    from lm_eval.tasks.hellaswag.utils import preprocess

    processed = {
        row["query"]: row
        for row in read_processed_hellaswag(data_dir / "tasks/hellaswag_val_random1000_processed.jsonl")
    }
    shared = 0
    for row in lines(data_dir / "tasks/hellaswag_val_biased1000.jsonl"):
        query = preprocess(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}")
        if query in processed:
            shared += 1
            assert processed[query]["choices"] == [preprocess(ending).replace(".. ", ". ") for ending in row["endings"]]
            assert processed[query]["label"] == str(row["label"])
    assert shared == 84  # what the data folder's README counted


def evaluate(model, data_dir, *flags):
    fixed = ("--model_path", model, "--data_dir", data_dir, "--device", "cpu", "--limit", 2, "--seq_len", 128)
    quick = ("--prompt_len", 16, "--decode_len", 2, "--repeats", 1)
    return run_evaluation.main([str(part) for part in (*fixed, *quick, *flags)])


def test_the_full_table_of_dense_and_pruned(smollm, cut, data_dir, capsys):
    """One run reports both metrics, versions, batches 1 and 16 apart, and the device."""
    pruned = cut(0.3)
    source = "wikitext2, wikitext-2-raw-v1/train (head), wiki.train.head.raw"
    report = pruning(scoring={"calibration": {**CALIBRATION, "source": source}})
    (pruned / "pruning_analysis.json").write_text(json.dumps(report))
    tasks = "wikitext,c4,lambada,zeroshot,efficiency"
    assert evaluate(pruned, data_dir, "--base_model", smollm, "--compare", "--tasks", tasks) == 0
    content = json.loads((pruned / "evaluation" / "results.json").read_text())
    results = {(item["role"], item["task"]): item for item in content["results"]}
    assert {task for _, task in results} == {"wikitext2", "c4", "lambada", *ZERO_SHOT, "efficiency"}
    for name, spec in ZERO_SHOT.items():
        item = results["pruned", name]
        assert [metric["name"] for metric in item["metrics"]] == [ours for ours, _, _ in spec.metrics.values()]
        assert item["protocol"]["harness"].startswith("lm-eval ")
        assert item["protocol"]["task_version"]
    assert content["zero_shot_average"]["pruned"]["tasks"] == list(ZERO_SHOT)
    assert content["zero_shot_average"]["pruned"]["acc_norm_is_acc_for"] == ["boolq", "winogrande"]
    assert any("same corpus" in warning for warning in content["warnings"])
    ratios = {item["metric"]: item["ratio"] for item in content["comparison"] if item["task"] == "efficiency"}
    assert ratios["parameters"] == ratios["weight_bytes"] < 1
    assert ratios["kv_cache_bytes_per_token"] == 1  # only MLP channels were cut
    assert all(ratios[f"{what}_ms_batch{batch}"] > 0 for what in ("prefill", "decode") for batch in (1, 16))
    assert results["pruned", "efficiency"]["protocol"]["device_name"]
    assert "mean over boolq" in capsys.readouterr().out


def test_a_model_cut_to_pieces_is_called_collapsed(smollm, cut, data_dir, capsys):
    """95 % of every MLP's channels are gone, chosen by position alone."""
    assert evaluate(cut(0.95), data_dir, "--base_model", smollm, "--compare", "--tasks", "wikitext") == 0
    assert "COLLAPSED" in capsys.readouterr().err


def test_window_length_changes_perplexity_and_is_recorded(smollm, data_dir, tmp_path):
    flags = ("--tasks", "wikitext", "--seq_len", 64, 256, "--output", tmp_path)
    assert evaluate(smollm, data_dir, *flags) == 0
    short, long = json.loads((tmp_path / "results.json").read_text())["results"]
    assert short["metrics"][0]["value"] != long["metrics"][0]["value"]
    assert [item["protocol"]["seq_len"] for item in (short, long)] == [64, 256]
    assert {item["metrics"][0]["name"] for item in (short, long)} == {"token_ppl"}  # never "perplexity"


def test_two_processes_give_the_numbers_of_one(smollm, data_dir, tmp_path):
    """``accelerate launch`` on CPUs: processes share the items, and one writes."""
    tasks = ("--tasks", "lambada,wikitext,arc_easy", "--limit", 5, "--seq_len", 64)
    flags = (*tasks, "--model_path", smollm, "--data_dir", data_dir, "--device", "cpu", "--dtype", "float32")
    alone, shared = ([str(part) for part in (*flags, "--output", tmp_path / name)] for name in ("one", "two"))
    assert run_evaluation.main(alone) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    script = [*launch, str(REPOSITORY / "evaluation/run_evaluation.py"), *shared]
    done = subprocess.run(script, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 processes share the items" in done.stderr
    found = [json.loads((tmp_path / name / "results.json").read_text())["results"] for name in ("one", "two")]
    for one, two in zip(*found, strict=True):
        assert one["task"] == two["task"]
        assert one["num_items"] == two["num_items"] == 5
        values = [{metric["name"]: metric["value"] for metric in item["metrics"]} for item in (one, two)]
        assert values[1] == pytest.approx(values[0], rel=1e-4)  # float32, in batches of other shapes
