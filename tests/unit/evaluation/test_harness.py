"""Tasks of the lm-eval harness: rows from local files score exactly as the harness itself scores the hub's."""

import copy
import json
import math
import sys
from importlib import metadata

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from hgsp.errors import InputError, NumericalError
from hgsp.evaluation.config import MeasurementOptions
from hgsp.evaluation.jobs import HarnessJob
from hgsp.evaluation.metrics import harness
from hgsp.evaluation.metrics.harness import load_task, run_task
from hgsp.evaluation.metrics.lambada import LAMBADA
from hgsp.evaluation.metrics.zeroshot import ZERO_SHOT

lm_eval = pytest.importorskip("lm_eval", reason="the extra hgsp[eval] is not installed")

SPECS = {**ZERO_SHOT, "lambada": LAMBADA}


def json_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def choices(*texts):
    return [{"text": text, "label": label} for text, label in zip(texts, "ABCD", strict=False)]


def columns(listed):
    return {key: [choice[key] for choice in listed] for key in ("text", "label")}


SENTENCES = ["The cat sat on the mat", "It rains in\u2028spring", "A dog\nbarks at night", "Two and two make four"]
CHOICES = [choices("red", "a much longer answer", "blue"), choices("up", "down", "left", "right")] * 2
HELLASWAG_FIELDS = ("ctx_a", "ctx_b", "activity_label", "endings", "label")
ENDINGS = [[f"{sentence} again [sub].", "no", "maybe  later", "never"] for sentence in SENTENCES]

#: task -> (official local files, rows as the hub has them). The same items, invented here.
ITEMS = {
    "boolq": (
        {
            "tasks/boolq_dev.jsonl": json_lines(
                {"question": f"is it {n}", "passage": sentence, "answer": n == 1}
                for n, sentence in enumerate(SENTENCES)
            )
        },
        [
            {"question": f"is it {n}", "passage": sentence, "idx": n, "label": int(n == 1)}
            for n, sentence in enumerate(SENTENCES)
        ],
    ),
    "piqa": (
        {
            "tasks/piqa_valid.jsonl": json_lines({"goal": s, "sol1": s[:7], "sol2": "do nothing"} for s in SENTENCES),
            "tasks/piqa_valid-labels.lst": "0\n1\n1\n0\n",
        },
        [
            {"goal": s, "sol1": s[:7], "sol2": "do nothing", "label": label}
            for s, label in zip(SENTENCES, (0, 1, 1, 0), strict=True)
        ],
    ),
    "hellaswag": (
        {
            "tasks/hellaswag_val.jsonl": json_lines(
                {"ind": n, "ctx_a": s, "ctx_b": "then he", "activity_label": "Cooking", "endings": endings, "label": n}
                for n, (s, endings) in enumerate(zip(SENTENCES, ENDINGS, strict=True))
            )
        },
        [
            {
                "ind": n,
                "ctx_a": s,
                "ctx_b": "then he",
                "activity_label": "Cooking",
                "endings": endings,
                "label": str(n),
                "split": "val",
            }
            for n, (s, endings) in enumerate(zip(SENTENCES, ENDINGS, strict=True))
        ],
    ),
    "winogrande": (
        {
            "tasks/winogrande_dev.jsonl": json_lines(
                {
                    "sentence": f"{s}, but _ did not mind it.",
                    "option1": "Ann",
                    "option2": "Robert",
                    "answer": "12"[n % 2],
                }
                for n, s in enumerate(SENTENCES)
            )
        },
        [
            {"sentence": f"{s}, but _ did not mind it.", "option1": "Ann", "option2": "Robert", "answer": "12"[n % 2]}
            for n, s in enumerate(SENTENCES)
        ],
    ),
    "lambada": (
        {"lambada/lambada_test.jsonl": json_lines({"text": s} for s in SENTENCES)},
        [{"text": s} for s in SENTENCES],
    ),
}
for task in ("arc_easy", "arc_challenge", "openbookqa"):
    stem = "question_stem" if task == "openbookqa" else "question"
    ITEMS[task] = (
        {
            f"tasks/{task}_test.jsonl": json_lines(
                {"id": str(n), "question": {"stem": s, "choices": listed}, "answerKey": "AB"[n % 2]}
                for n, (s, listed) in enumerate(zip(SENTENCES, CHOICES, strict=True))
            )
        },
        [
            {"id": str(n), stem: s, "choices": columns(listed), "answerKey": "AB"[n % 2]}
            for n, (s, listed) in enumerate(zip(SENTENCES, CHOICES, strict=True))
        ],
    )


@pytest.fixture
def local(tmp_path):
    """A data folder with the official files of all tasks."""
    for files, _ in ITEMS.values():
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(content, encoding="utf-8")
    return tmp_path


@pytest.fixture
def hub(monkeypatch):
    """``datasets.load_dataset`` answers with the rows the hub has; returns what it was asked for."""
    import datasets

    asked = []

    def load_dataset(path, name=None, **kwargs):
        asked.append({"path": path, "name": name, **kwargs})
        task = next(task for task, spec in SPECS.items() if (path, name) in HUB_NAMES[task])
        rows = datasets.Dataset.from_list(ITEMS[task][1])
        return dict.fromkeys(("train", "validation", "test"), rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


#: Where lm-eval 0.4.13 finds converted data: no loading scripts, which `datasets` does not run any more.
HUB_NAMES = {
    "boolq": [("aps/super_glue", "boolq")],
    "piqa": [("baber/piqa", None)],
    "hellaswag": [("Rowan/hellaswag", None)],
    "winogrande": [("allenai/winogrande", "winogrande_xl")],
    "arc_easy": [("allenai/ai2_arc", "ARC-Easy")],
    "arc_challenge": [("allenai/ai2_arc", "ARC-Challenge")],
    "openbookqa": [("allenai/openbookqa", "main")],
    "lambada": [("EleutherAI/lambada_openai", "default")],
}


@pytest.fixture(scope="module")
def model():
    from conftest import make_tiny

    return make_tiny("llama-8q4kv", seed=3)


def harness_itself(name, model, tokenizer, **settings):
    """The harness's own front door, on its own task of that name."""
    from pathlib import Path

    from lm_eval import simple_evaluate, tasks
    from lm_eval.models.huggingface import HFLM

    folder = Path(tasks.__file__).parent / SPECS[name].folder
    lm = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), backend="causal", batch_size=2)
    return simple_evaluate(
        lm,
        tasks=[SPECS[name].name],
        task_manager=tasks.TaskManager(include_defaults=False, include_path=str(folder)),
        **settings,
    )["results"][SPECS[name].name]


@pytest.mark.parametrize("name", SPECS)
def test_local_rows_hub_rows_and_the_harness_itself_agree(name, local, hub, model, tokenizer, monkeypatch):
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # seconds of asking pip for versions
    # bootstrap_iters: 1 gives the closed form of an accuracy's error; a perplexity's would be drawn at random
    theirs = harness_itself(name, model, tokenizer, bootstrap_iters=0 if name == "lambada" else 1)
    from_hub = run_task(load_task(SPECS[name], None), model, tokenizer, batch_size=2, limit=None)
    from_file = run_task(load_task(SPECS[name], local), model, tokenizer, batch_size=2, limit=None)
    assert from_file == from_hub
    for metric, (ours, _, _) in SPECS[name].metrics.items():
        assert from_file[ours].value == theirs[f"{metric},none"]
        assert from_file[ours].num_items == 4
        if name != "lambada":
            assert from_file[ours].stderr == pytest.approx(theirs[f"{metric}_stderr,none"])


def test_the_error_of_a_perplexity_is_by_the_delta_method():
    """d exp(-m) = exp(-m) dm, with m the mean of -1, -2, -3, whose error is 1 / sqrt(3)."""
    assert harness._stderr("perplexity", [-1.0, -2.0, -3.0]) == pytest.approx(math.exp(2) / math.sqrt(3))
    assert harness._stderr("acc", [0.0, 1.0, 1.0, 0.0]) == pytest.approx(math.sqrt(1 / 3) / 2)


def test_no_loading_script_is_ever_asked_for(hub, model, tokenizer):
    for spec in SPECS.values():
        load_task(spec, None)
    assert [(request["path"], request["name"]) for request in hub] == [HUB_NAMES[name][0] for name in SPECS]
    assert not any("trust_remote_code" in request for request in hub)


def test_processed_hellaswag_is_what_the_harness_makes(tmp_path, hub):
    made = load_task(ZERO_SHOT["hellaswag"], None).task.eval_docs
    path = tmp_path / "tasks" / "hellaswag_val_random1000_processed.jsonl"
    path.parent.mkdir()
    path.write_text(json_lines({"query": r["query"], "choices": r["choices"], "gold": r["gold"]} for r in made))
    task = load_task(ZERO_SHOT["hellaswag"], tmp_path)
    assert task.source["split"] == "validation (random 1000 of 10042, .. made .)"
    for ours, theirs in zip(task.task.eval_docs, made, strict=True):
        for function in ("doc_to_text", "doc_to_target", "doc_to_choice"):
            assert getattr(task.task, function)(ours) == getattr(task.task, function)(theirs)


def test_the_source_is_part_of_the_protocol(local, hub):
    task = load_task(ZERO_SHOT["piqa"], local)
    assert task.source["source"] == "piqa_valid.jsonl"
    assert len(task.source["sha256"]) == 64
    assert (task.version, task.num_items) == ("1.0", 4)
    assert load_task(ZERO_SHOT["piqa"], None).source == {"source": "baber/piqa", "split": "validation"}


def test_limit_takes_the_first_items(local, model, tokenizer):
    task = load_task(ZERO_SHOT["arc_easy"], local)
    assert run_task(task, model, tokenizer, batch_size=2, limit=1)["acc"].num_items == 1
    assert run_task(task, model, tokenizer, batch_size=2, limit=1)["acc"].stderr is None
    assert run_task(task, model, tokenizer, batch_size=2, limit=None)["acc"].num_items == 4


def test_batch_size_and_padding_side_change_nothing(local, model, tokenizer):
    padded = copy.deepcopy(tokenizer)
    padded.pad_token, padded.padding_side = padded.eos_token, "left"
    for name in ("arc_easy", "lambada"):
        task = load_task(SPECS[name], local)
        found = [
            {metric: score.value for metric, score in run_task(task, model, side, batch_size=size, limit=None).items()}
            for side in (tokenizer, padded)
            for size in (1, 3, 12)
        ]
        for other in found[1:]:
            assert other == pytest.approx(found[0], rel=1e-5)  # float32 kernels round differently per batch size


@pytest.mark.parametrize("adds", [True, False])
def test_the_protocol_says_whether_the_model_sees_a_bos_first(local, make, tokenizer, adds):
    """As the tokenizer has it, like the harness itself."""
    own, model, seen = copy.deepcopy(tokenizer), make("llama-8q4kv"), []
    if adds:
        own.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    model.register_forward_pre_hook(
        lambda _, inputs, named: seen.append([*inputs, *named.values()][0]), with_kwargs=True
    )
    found = HarnessJob("lambada", load_task(LAMBADA, local), MeasurementOptions(batch_size=1)).run(model, own)
    assert {int(ids[0, 0] == 256) for ids in seen} == {adds}
    assert found.protocol["begins_with_bos"] is adds
    assert ("BOS first" if adds else "no BOS") in found.protocol["description"]


def test_items_longer_than_the_model_are_counted_beside_the_number(local, make, tokenizer):
    """One byte is one token: the contexts have 21 to 22 bytes, the answers 2 to 21."""
    found = {}
    for positions in (22, 26, 512):
        job = HarnessJob("arc_easy", load_task(ZERO_SHOT["arc_easy"], local), MeasurementOptions())
        found[positions] = job.run(make("llama-8q4kv", max_position_embeddings=positions), tokenizer)
    lengths = [
        max(len(f"Question: {s}\nAnswer: {choice['text']}".encode()) for choice in listed) - 1
        for s, listed in zip(SENTENCES, CHOICES, strict=True)
    ]
    for positions, measured in found.items():
        expected = sum(length > positions for length in lengths)
        assert (measured.protocol["truncated_items"], measured.protocol["positions"]) == (expected, positions)
        words = f"{expected} items cut to the last {positions} tokens"
        assert (words in measured.summary) is (words in measured.protocol["description"]) is (expected > 0)
    assert found[512].protocol["truncated_items"] == 0


def test_answers_longer_than_the_model_are_refused(local, make, tokenizer):
    model = make("llama-8q4kv", max_position_embeddings=8)
    with pytest.raises(InputError, match="answers of at most 8 tokens"):
        run_task(load_task(ZERO_SHOT["arc_easy"], local), model, tokenizer, batch_size=2, limit=None)


#: Rows of tasks with one wrong field in line 2, and the field.
WRONG_FIELDS = {
    "boolq": ({"question": "q", "passage": "p", "answer": True}, {"answer": "yes"}, "answer"),
    "piqa": ({"goal": "g", "sol1": "a", "sol2": "b"}, {"sol2": None}, "sol2"),
    "hellaswag": (
        {"ctx_a": "a", "ctx_b": "b", "activity_label": "c", "endings": ["x", "y"], "label": 1},
        {"label": 2},
        "label",
    ),
    "winogrande": ({"sentence": "a _ b", "option1": "x", "option2": "y", "answer": "1"}, {"answer": "3"}, "answer"),
    "arc_easy": (
        {"question": {"stem": "s", "choices": CHOICES[0]}, "answerKey": "A"},
        {"answerKey": "E"},
        "answerKey",
    ),
    "arc_challenge": (
        {"question": {"stem": "s", "choices": CHOICES[0]}, "answerKey": "A"},
        {"question": {"stem": "s", "choices": [{"text": "red"}]}},
        "question.choices.0.label",
    ),
    "openbookqa": (
        {"question": {"stem": "s", "choices": CHOICES[0]}, "answerKey": "A"},
        {"question": {"stem": "\ud83d", "choices": CHOICES[0]}},
        "question.stem",
    ),
    "lambada": ({"text": "t"}, {"text": ["t"]}, "text"),
}


@pytest.mark.parametrize("name", WRONG_FIELDS)
def test_a_wrong_field_is_refused_with_its_file_and_line(name, local):
    row, change, field = WRONG_FIELDS[name]
    path = local / SPECS[name].files[0].name
    path.write_text(json_lines([row, {**row, **change}]))
    (local / "tasks/piqa_valid-labels.lst").write_text("0\n1\n")
    with pytest.raises(InputError) as refusal:
        load_task(SPECS[name], local)
    assert f"in '{field}' of every row" in str(refusal.value)
    assert f"{path}, line 2;" in str(refusal.value)


def test_the_tokenizer_is_left_as_it_was(local, model, tokenizer):
    assert tokenizer.pad_token is None
    run_task(load_task(LAMBADA, local), model, tokenizer, batch_size=2, limit=1)
    assert tokenizer.pad_token is None


def test_nan_logits_are_an_error_and_not_an_accuracy(local, make, tokenizer):
    broken = make("llama-8q4kv")
    with torch.no_grad():
        broken.lm_head.weight[5] = torch.nan
    with pytest.raises(NumericalError, match="item 0 of arc_easy is nan"):
        run_task(load_task(ZERO_SHOT["arc_easy"], local), broken, tokenizer, batch_size=2, limit=None)


def test_progress_counts_the_sequences(local, model, tokenizer):
    seen = []

    def progress(items, label, total):
        for done, item in enumerate(items, 1):
            seen.append((label, done, total))
            yield item

    run_task(load_task(ZERO_SHOT["piqa"], local), model, tokenizer, batch_size=3, limit=None, progress=progress)
    assert seen == [("piqa", number, 8) for number in range(1, 9)]


def test_missing_rows_name_the_file_and_the_way_out(tmp_path, monkeypatch):
    import datasets

    def offline(*arguments, **named):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(InputError, match=r"no tasks/piqa_valid.jsonl in .*ConnectionError: no route\).*--data_dir"):
        load_task(ZERO_SHOT["piqa"], tmp_path)


BAD_FILES = {
    "one label short": ("piqa", {"tasks/piqa_valid-labels.lst": "0\n1\n1\n"}),
    "no labels": ("piqa", {"tasks/piqa_valid-labels.lst": None}),
    "other fields": ("hellaswag", {"tasks/hellaswag_val.jsonl": '{"ctx": "x"}\n'}),
    "no endings": ("hellaswag", {"tasks/hellaswag_val.jsonl": json_lines([dict.fromkeys(HELLASWAG_FIELDS)])}),
    "empty": ("boolq", {"tasks/boolq_dev.jsonl": ""}),
    "an lfs pointer": ("arc_easy", {"tasks/arc_easy_test.jsonl": "version https://git-lfs.github.com/spec/v1\n"}),
    "lists": ("lambada", {"lambada/lambada_test.jsonl": '["text"]\n'}),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_holds_no_rows_of_its_task_is_refused_and_named(local, name):
    task, changes = BAD_FILES[name]
    for file, content in changes.items():
        (local / file).unlink()
        if content is not None:
            (local / file).write_text(content)
    with pytest.raises(InputError, match=str(local / SPECS[task].files[0].name).partition(".")[0]) as refusal:
        load_task(SPECS[task], local)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("package", ["lm_eval", "datasets"])
def test_without_the_packages_the_extra_is_named(monkeypatch, package, local):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"pip install -e '.\[eval\]'"):
        load_task(LAMBADA, local)


def test_the_installed_version_is_recorded():
    assert harness.harness_version() == metadata.version("lm_eval")
