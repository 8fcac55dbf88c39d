"""The recovery recipe as users call it: training, outputs, messages and refusals; nothing is lost."""

import csv
import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import finetune_lora
from conftest import TINY, make_tiny
from hgsp.cli import main as cli
from hgsp.models.checkpoint import load_pruned, load_tokenizer_of, save_pruned
from hgsp.pruning.surgery import apply_plan
from hgsp.recovery import callbacks, outputs, resume, training
from hgsp.recovery.losses import Objective
from plans import mixed_plan, plan_dropping

SETTINGS = {
    "--max_steps": "4",
    "--batch_size": "4",
    "--micro_batch_size": "2",
    "--val_size": "4",
    "--eval_steps": "1",
    "--cutoff_len": "96",
    "--learning_rate": "1e-2",
    "--eval_tasks": "builtin",
    "--eval_seq_len": "64",
    "--eval_max_windows": "2",
    "--device": "cpu",
}
COLOURS = ("red", "green", "blue", "yellow", "black", "white")
ROWS = [
    {"instruction": f"Repeat {COLOURS[n % 6]} {n}.", "input": "", "output": f"{COLOURS[n % 6]} " * (1 + n % 3)}
    for n in range(28)
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.json"
    path.write_text(json.dumps(ROWS))
    return path


@pytest.fixture(scope="module")
def pruned_model(tmp_path_factory, tokenizer):
    """``pruned_model(name, plan=..., dtype=...)`` is the folder of a pruned tiny model."""

    def folder(name="llama-8q4kv", plan=mixed_plan, dtype=torch.float32):
        path = tmp_path_factory.mktemp("pruned") / "p20"
        path.mkdir()
        model = make_tiny(name).to(dtype)
        model.config.dtype = dtype
        save_pruned(apply_plan(model, plan(model)), tokenizer, path)
        return path

    return folder


@pytest.fixture(scope="module")
def pruned(pruned_model):
    """One pruned model for all tests, which must not change it."""
    return pruned_model()


@pytest.fixture(scope="module")
def finetune(rows, pruned):
    """``finetune(output, *flags, model=folder)`` runs the recipe and returns its exit code; later flags win."""

    def run(output, *flags, model=None):
        paths = ("--pruned_model", model or pruned, "--data_path", rows, "--output_dir", output)
        settings = [part for pair in SETTINGS.items() for part in pair]
        return finetune_lora.main([str(part) for part in (*settings, *paths, *flags)])

    return run


@pytest.fixture(scope="module")
def result(finetune, tmp_path_factory):
    """One finished run, for tests that only read it."""
    output = tmp_path_factory.mktemp("recovered") / "out"
    assert finetune(output) == 0
    return output


@pytest.fixture(scope="module")
def analysis(result):
    return json.loads((result / "recovery_analysis.json").read_text())


def curve_of(folder):
    with (folder / "loss_curve.csv").open() as lines:
        return list(csv.DictReader(lines))


def losses_of(folder):
    return [float(row["loss"]) for row in curve_of(folder) if row["loss"]]


def adapter_of(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def files_in(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_everything_is_there_and_nothing_else_is_left(result):
    expected = {
        "pruned_model.bin",
        "model.safetensors",
        "config.json",
        "modeling_hgsp.py",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "loss_curve.csv",
        "loss_curve.png",
        "recovery_analysis.json",
        "report.html",
        "report.md",
        "logs/training.log",
        "run.yaml",
        "README.md",
        "checksums.sha256",
    }
    assert files_in(result) == expected
    assert [path.name for path in result.parent.iterdir()] == ["out"]
    assert (result / "loss_curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_analysis_says_what_was_done_and_what_it_was_worth(analysis):
    assert analysis["command"].startswith("finetune_lora.py --max_steps 4")
    assert analysis["steps"] == 4
    assert analysis["data"]["train_sequences"] == 24
    assert analysis["parameters"]["trained"] < analysis["parameters"]["model"]
    assert set(analysis["evaluation"]["before"]) == set(analysis["evaluation"]["after"]) == {"builtin"}
    assert analysis["held_out_loss"]["kept"] < analysis["held_out_loss"]["first"]
    assert {"load", "train", "save", "evaluate"} <= set(analysis["timings_s"])


def test_the_log_has_every_step(result):
    log = (result / "logs" / "training.log").read_text()
    assert all(f"step {step} of 4: loss" in log for step in (1, 2, 3, 4))
    assert "recovered by LoRA" in log


@pytest.mark.parametrize("what", ["folder", "bin", "moved"])
def test_the_result_is_the_pruned_model_with_other_weights(what, result, pruned, tmp_path):
    """Shapes and parameter count are unchanged, wherever the folder is moved."""
    if what == "moved":
        result = shutil.copytree(result, tmp_path / "elsewhere")
    recovered = load_pruned(result / "pruned_model.bin" if what == "bin" else result)
    before = load_pruned(pruned)
    assert type(recovered) is type(before)
    assert {n: p.shape for n, p in recovered.named_parameters()} == {n: p.shape for n, p in before.named_parameters()}
    assert recovered.config.to_dict() | {"_name_or_path": ""} == before.config.to_dict() | {"_name_or_path": ""}
    changed = {n for n, p in recovered.named_parameters() if not torch.equal(p, before.get_parameter(n))}
    assert {name.split(".")[-2] for name in changed} == set(training.TrainingConfig.lora_target_modules)
    assert len(load_tokenizer_of(result)) == len(load_tokenizer_of(pruned))


def test_the_adapter_holds_two_trained_tensors_per_linear_and_names_the_pruned_model(result, pruned):
    """The adapter file must not be nearly empty, and its base must not be the dense model."""
    adapter = adapter_of(result)
    assert len(adapter) == 2 * 7 * 3
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}
    assert all(tensor.isfinite().all() and tensor.any() for tensor in adapter.values())
    description = json.loads((result / "adapter" / "adapter_config.json").read_text())
    base = result / "adapter" / description["base_model_name_or_path"]
    assert base.resolve() == pruned.resolve()


def test_merged_equals_unmerged(result, pruned, tokens):
    adapted = PeftModel.from_pretrained(load_pruned(pruned), str(result / "adapter"))
    with torch.no_grad():
        expected, found = adapted(tokens).logits, load_pruned(result)(tokens).logits
    assert (found - expected).abs().max() < 1e-4
    assert not torch.allclose(found, load_pruned(pruned)(tokens).logits, atol=1e-2)


def test_merged_equals_unmerged_in_bfloat16(finetune, pruned_model, tmp_path, tokens):
    """The merged model keeps the dtype of the pruned one."""
    model = pruned_model(dtype=torch.bfloat16)
    assert finetune(tmp_path / "out", model=model) == 0
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    adapted = PeftModel.from_pretrained(load_pruned(model), str(tmp_path / "out" / "adapter"))
    with torch.no_grad():
        expected, found = (m(tokens).logits.float() for m in (adapted, load_pruned(tmp_path / "out")))
    assert (found - expected).std() < 0.03 * expected.std()  # bfloat16 has 8 bits


def test_checkpointing_changes_memory_only(finetune, result, tmp_path):
    """Every lora_B learns, and the loss curve is the same."""
    assert finetune(tmp_path / "out", "--use_gradient_checkpointing") == 0
    assert losses_of(tmp_path / "out") == pytest.approx(losses_of(result), rel=1e-4)
    for folder in (result, tmp_path / "out"):
        learned = {name: tensor.norm().item() for name, tensor in adapter_of(folder).items() if "lora_B" in name}
        assert len(learned) == 7 * 3
        assert min(learned.values()) > 0


def test_the_first_loss_is_the_mean_over_the_answers_tokens_of_the_whole_batch(result, pruned, rows, tokenizer):
    """The loss accumulated over unequal micro batches matches a loop over sequences; LoRA starts at zero."""
    from hgsp.recovery.config import TrainingConfig
    from hgsp.recovery.training_text import load_training_text

    config = TrainingConfig(data_path=str(rows), val_size=4, cutoff_len=96)
    model, losses, counts = load_pruned(pruned), [], []
    order = torch.randperm(24, generator=torch.Generator().manual_seed(42)).tolist()
    for sample in load_training_text(config, tokenizer).train:
        labels = torch.from_numpy(sample.labels).long()[None]
        with torch.no_grad():
            losses.append(model(torch.from_numpy(sample.input_ids).long()[None], labels=labels).loss.item())
        counts.append(sample.num_learned)
    batches = [order[:4]]
    total = [sum(losses[i] * counts[i] for i in batch) / sum(counts[i] for i in batch) for batch in batches]
    assert len(set(counts)) > 1
    assert losses_of(result)[0] == pytest.approx(total[0], rel=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=() if name in ("llama-9q3kv-tied", "llama-mqa", "qwen2-14q2kv") else pytest.mark.thorough
        )
        for name in sorted(TINY)
    ],
)
def test_every_geometry_trains(name, finetune, pruned_model, tmp_path):
    """Ragged, tied, biased, MHA, MQA, 7:1."""
    model = pruned_model(name)
    assert finetune(tmp_path / "out", "--skip_evaluation", model=model) == 0
    kept = json.loads((tmp_path / "out" / "recovery_analysis.json").read_text())["held_out_loss"]
    assert kept["kept"] < kept["first"]
    assert load_pruned(tmp_path / "out").num_parameters() == load_pruned(model).num_parameters()


def test_models_without_a_layer_or_a_block_train(finetune, pruned_model, tmp_path):
    model = pruned_model(plan=lambda model: plan_dropping(model, kv={0: range(4)}, mlp={1: range(96)}, layers=[2]))
    assert finetune(tmp_path / "out", "--skip_evaluation", model=model) == 0
    assert len(adapter_of(tmp_path / "out")) == 2 * 7  # attention of one layer, MLP of the other
    assert load_pruned(tmp_path / "out").config.num_hidden_layers == 2


def test_a_dense_model_and_a_bin_are_taken_too(finetune, pruned, saved, make, tmp_path):
    assert finetune(tmp_path / "a", "--skip_evaluation", model=saved(make("mistral-8q4kv"))) == 0
    assert finetune(tmp_path / "b", "--skip_evaluation", model=pruned / "pruned_model.bin") == 0
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "a")).__name__ == "MistralForCausalLM"
    assert not (tmp_path / "a" / "pruning_analysis.json").exists()


def test_half_precision_trains_adapters_in_float32(finetune, pruned_model, tmp_path):
    assert finetune(tmp_path / "out", "--skip_evaluation", model=pruned_model(dtype=torch.float16)) == 0
    assert {tensor.dtype for tensor in adapter_of(tmp_path / "out").values()} == {torch.float32}
    assert load_pruned(tmp_path / "out").dtype == torch.float16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_parameters_can_be_trained_and_come_back_as_they_were_stored(dtype, finetune, pruned_model, tmp_path):
    model = pruned_model("llama-9q3kv-tied", dtype=dtype)
    flags = ("--method", "full", "--learning_rate", "1e-3", "--skip_evaluation")
    assert finetune(tmp_path / "out", *flags, model=model) == 0
    recovered, before = load_pruned(tmp_path / "out"), load_pruned(model)
    assert recovered.dtype == dtype
    assert recovered.lm_head.weight is recovered.model.embed_tokens.weight
    assert not torch.equal(recovered.model.norm.weight, before.model.norm.weight) or dtype == torch.bfloat16
    assert not torch.equal(recovered.model.embed_tokens.weight, before.model.embed_tokens.weight)
    assert not (tmp_path / "out" / "adapter").exists()


def test_packing_learns_the_same_tokens_in_fewer_sequences(finetune, result, tmp_path):
    assert finetune(tmp_path / "out", "--packing", "--cutoff_len", "256", "--skip_evaluation") == 0
    packed, plain = (json.loads((f / "recovery_analysis.json").read_text()) for f in (tmp_path / "out", result))
    assert packed["data"]["train_learned_tokens"] == plain["data"]["train_learned_tokens"]
    assert packed["data"]["train_sequences"] < plain["data"]["train_sequences"] / 3
    assert packed["held_out_loss"]["first"] == pytest.approx(plain["held_out_loss"]["first"], rel=1e-4)


def test_the_held_out_loss_is_that_per_token_however_rows_are_batched(finetune, analysis, tmp_path):
    assert finetune(tmp_path / "out", "--micro_batch_size", "1", "--skip_evaluation") == 0
    one_by_one = json.loads((tmp_path / "out" / "recovery_analysis.json").read_text())["held_out_loss"]
    assert one_by_one == pytest.approx(analysis["held_out_loss"], rel=1e-3)


@pytest.mark.parametrize("method", ["lora", pytest.param("full", marks=pytest.mark.thorough)])
def test_the_best_learning_rate_of_several_trains_as_if_it_had_been_given(method, finetune, tmp_path, capsys):
    rates = {"lora": ("1e-6", "1e-2", "1e30"), "full": ("1e-7", "1e-3", "1e30")}[method]
    flags = ("--method", method, "--skip_evaluation", "--no_bin")
    assert finetune(tmp_path / "given", *flags, "--learning_rate", rates[1]) == 0
    capsys.readouterr()
    assert finetune(tmp_path / "tried", *flags, "--probe_learning_rates", *rates, "--probe_steps", "3") == 0
    assert f"learning rate {float(rates[1]):g}, the best of 3 tried" in capsys.readouterr().out
    analysis = json.loads((tmp_path / "tried" / "recovery_analysis.json").read_text())
    assert analysis["learning_rate"] == float(rates[1])
    low, best, broken = (tried["held_out_loss"] for tried in analysis["probes"])
    assert best < low < analysis["held_out_loss"]["first"]
    assert broken is None
    assert losses_of(tmp_path / "tried") == losses_of(tmp_path / "given")
    given, tried = (load_pruned(tmp_path / name).state_dict() for name in ("given", "tried"))
    assert all(torch.equal(tensor, tried[name]) for name, tensor in given.items())


def test_learning_rates_are_not_tried_again_after_a_kill(finetune, tmp_path, monkeypatch):
    flags = ("--probe_learning_rates", "1e-6", "1e-2", "--probe_steps", "2", "--skip_evaluation")

    def kill(self, args, state, control, **_):
        if state.max_steps == 4 and state.global_step == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.StopOnNonFinite, "on_step_end", kill, raising=False)
        with pytest.raises(Killed):
            finetune(tmp_path / "out", *flags)
    monkeypatch.setattr(training, "probe", kill)
    assert finetune(tmp_path / "out", *flags, "--resume") == 0
    analysis = json.loads((tmp_path / "out" / "recovery_analysis.json").read_text())
    assert [tried["learning_rate"] for tried in analysis["probes"]] == [1e-6, 1e-2]
    assert analysis["learning_rate"] == 1e-2


def test_no_learning_rate_with_a_finite_loss_stops(finetune, tmp_path, capsys):
    assert finetune(tmp_path / "out", "--probe_learning_rates", "1e30", "--skip_evaluation") == 1
    assert "no learning rate of 1e+30 gives a finite loss" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


class Killed(BaseException):
    """An exception that no handler of ours catches, like a kill."""


def test_a_killed_run_resumed_ends_where_an_uninterrupted_one_ends(finetune, result, tmp_path, monkeypatch):
    """Losses and weights are equal."""
    output = tmp_path / "out"

    def kill(self, args, state, control, **_):
        if state.global_step == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.StopOnNonFinite, "on_step_end", kill, raising=False)
        with pytest.raises(Killed):
            finetune(output)
    assert not output.exists()
    half_written = output.with_name("out.training") / "states" / "checkpoint-3"
    half_written.mkdir(exist_ok=True)  # as when the kill came in the middle of writing
    (half_written / "trainer_state.json").unlink(missing_ok=True)
    assert finetune(output) == 2  # an unfinished run is never overwritten by accident
    assert finetune(output, "--resume", "--lora_r", "4") == 2
    assert finetune(output, "--resume") == 0
    assert losses_of(output) == losses_of(result)
    assert all(torch.equal(tensor, adapter_of(result)[name]) for name, tensor in adapter_of(output).items())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert "resuming from checkpoint-2" in (output / "logs" / "training.log").read_text()


@pytest.mark.parametrize("held_out", ["4", "0"])
def test_a_run_killed_after_its_last_step_is_resumed_without_another(held_out, finetune, result, tmp_path, monkeypatch):
    """The best state is kept, or the last one without held-out rows."""

    def kill(*_):
        raise Killed

    flags = ("--val_size", held_out, "--skip_evaluation")
    with monkeypatch.context() as patch:
        patch.setattr(outputs, "recovered_model", kill)
        with pytest.raises(Killed):
            finetune(tmp_path / "out", *flags)
    monkeypatch.setattr(training.RecoveryTrainer, "train", kill)
    assert finetune(tmp_path / "out", *flags, "--resume") == 0
    analysis = json.loads((tmp_path / "out" / "recovery_analysis.json").read_text())
    assert (analysis["steps"], len(losses_of(tmp_path / "out"))) == (4, 4)
    if held_out == "4":
        assert curve_of(tmp_path / "out") == curve_of(result)
        assert all(torch.equal(t, adapter_of(result)[name]) for name, t in adapter_of(tmp_path / "out").items())
    else:
        assert analysis["kept_step"] == 4


def test_a_loss_that_is_not_finite_stops_with_its_step_and_keeps_what_there_was(
    finetune, tmp_path, monkeypatch, capsys
):
    calls = []
    original = Objective.summed

    def planted(self, logits, labels, teacher=None):
        loss = original(self, logits, labels, teacher)
        calls.append(logits.requires_grad)
        return loss * float("nan") if sum(calls) == 5 else loss

    monkeypatch.setattr(Objective, "summed", planted)
    assert finetune(tmp_path / "out", "--skip_evaluation") == 1
    assert "step 3 is not finite" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    states = tmp_path / "out.training" / "states"
    last = resume.last_complete_state(states)
    assert last == states / "checkpoint-2"
    assert all(tensor.isfinite().all() for tensor in load_file(last / "adapter_model.safetensors").values())


def test_a_held_out_loss_that_is_not_finite_stops_and_keeps_the_state_to_resume(
    finetune, tmp_path, monkeypatch, capsys
):
    original = Objective.summed

    def planted(self, logits, labels, teacher=None):
        loss = original(self, logits, labels, teacher)
        return loss if logits.requires_grad else loss * float("nan")

    monkeypatch.setattr(Objective, "summed", planted)
    assert finetune(tmp_path / "out", "--skip_evaluation") == 1
    assert "the held-out loss after step 0 is nan" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("changed", ["training text", "weights of the pruned model"])
def test_a_run_whose_inputs_changed_is_not_resumed(
    finetune, pruned_model, rows, tmp_path, monkeypatch, capsys, changed
):
    model, data = pruned_model(), tmp_path / "rows.json"
    data.write_bytes(rows.read_bytes())
    flags = ("--data_path", data, "--skip_evaluation")

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(outputs, "recovered_model", killed)
        assert finetune(tmp_path / "out", *flags, model=model) == 1
    capsys.readouterr()
    if changed == "training text":
        data.write_text(json.dumps(json.loads(data.read_text())[::-1]))
    else:
        weights = load_file(model / "model.safetensors")
        weights["model.norm.weight"][-1] += 1
        save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    assert finetune(tmp_path / "out", *flags, "--resume", model=model) == 2
    assert f"another content of the {changed}" in capsys.readouterr().err
    assert (tmp_path / "out.training").is_dir()


@pytest.mark.parametrize(
    ("content", "got"),
    [('{"evaluation": ', "Expecting value"), ("[]", "an object"), ('{"asked_ratio": 0.2}', "base_model must be there")],
)
def test_a_damaged_report_beside_the_model_is_refused_before_training(
    content, got, finetune, pruned_model, tmp_path, capsys
):
    model = pruned_model()
    (model / "pruning_analysis.json").write_text(content)
    assert finetune(tmp_path / "out", model=model) == 2
    error = capsys.readouterr().err
    assert "pruning_analysis.json (" in error
    assert got in error
    assert not list(tmp_path.iterdir())


def test_recovery_that_does_harm_says_so_and_keeps_the_pruned_model(finetune, pruned, tmp_path, monkeypatch):
    before = {name: (pruned / name).read_bytes() for name in files_in(pruned)}
    trained = outputs.recovered_model

    def spoiled(*arguments):
        model = trained(*arguments)
        model.lm_head.weight.data *= 5
        return model

    monkeypatch.setattr(outputs, "recovered_model", spoiled)
    assert finetune(tmp_path / "out") == 0
    analysis = json.loads((tmp_path / "out" / "recovery_analysis.json").read_text())
    assert analysis["worse_on"] == ["builtin"]
    assert any("RECOVERY MADE IT WORSE" in warning for warning in analysis["warnings"])
    assert "RECOVERY MADE IT WORSE" in (tmp_path / "out" / "logs" / "training.log").read_text()
    assert {name: (pruned / name).read_bytes() for name in files_in(pruned)} == before


def test_a_held_out_loss_that_only_rose_is_reported_as_it_is(finetune, tmp_path):
    flags = ("--learning_rate", "1", "--warmup_ratio", "0", "--max_steps", "1", "--skip_evaluation")
    assert finetune(tmp_path / "out", *flags) == 0
    analysis = json.loads((tmp_path / "out" / "recovery_analysis.json").read_text())
    measured = [float(row["eval_loss"]) for row in curve_of(tmp_path / "out")]
    assert measured[1] > measured[0]
    assert analysis["held_out_loss"] == {"first": measured[0], "kept": measured[1]}
    assert any("RECOVERY MADE IT WORSE: the held-out loss" in warning for warning in analysis["warnings"])


def test_a_chat_template_survives_and_skipped_rows_are_warned_about(finetune, pruned, tmp_path):
    model = shutil.copytree(pruned, tmp_path / "chatty")
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}</s>{% endfor %}")
    (tmp_path / "rows.json").write_text(json.dumps([*ROWS, {"instruction": "Say nothing.", "output": ""}]))
    flags = ("--data_path", tmp_path / "rows.json", "--max_steps", "1", "--skip_evaluation")
    assert finetune(tmp_path / "out", *flags, model=model) == 0
    for saved in (tmp_path / "out", tmp_path / "out" / "pruned_model.bin"):
        chat = [{"role": "user", "content": "Hi"}]
        assert load_tokenizer_of(saved).apply_chat_template(chat, tokenize=False) == "Hi</s>"
    analysis = json.loads((tmp_path / "out" / "recovery_analysis.json").read_text())
    assert "rows skipped because their answers are empty: 1" in analysis["warnings"]


@pytest.mark.parametrize("name", ["english.txt", "english.jsonl"])
def test_a_model_trained_on_what_it_is_evaluated_on_says_so(name, finetune, text_file, tmp_path):
    path = tmp_path / name
    path.write_text(text_file.read_text() if name.endswith("txt") else json.dumps({"text": text_file.read_text()}))
    flags = ("--data_path", path, "--eval_tasks", f"builtin,{path}", "--max_steps", "1", "--val_size", "0")
    assert finetune(tmp_path / "out", *flags) == 0
    warnings = json.loads((tmp_path / "out" / "recovery_analysis.json").read_text())["warnings"]
    assert f"trained on the evaluation text itself ({name}): its PPL is biased low" in warnings
    assert not any("(builtin)" in warning for warning in warnings)


@pytest.fixture
def dense(saved, make):
    """The teacher of ``pruned``."""
    return saved(make("llama-8q4kv"), "dense")


DISTILLATIONS = {
    "whole": (),
    "mixed": ("--distill_weight", "0.5", "--distill_temperature", "2"),
    "top": ("--distill_top_k", "20"),
    "cached": ("--distill_top_k", "20", "--distill_cache"),
    "offloaded": ("--distill_offload",),
    "packed": ("--packing", "--distill_top_k", "20", "--distill_cache", "--cutoff_len", "256"),
}


@pytest.mark.parametrize(
    "way",
    [
        pytest.param(way, marks=() if way in ("whole", "cached", "offloaded") else pytest.mark.thorough)
        for way in DISTILLATIONS
    ],
)
def test_distillation_lowers_the_distance_to_the_teacher(way, finetune, dense, tmp_path):
    flags = ("--distill_from", dense, "--dtype", "float32", "--skip_evaluation")
    assert finetune(tmp_path / "out", *flags, *DISTILLATIONS[way]) == 0
    kept = json.loads((tmp_path / "out" / "recovery_analysis.json").read_text())["held_out_loss"]
    assert kept["kept"] < 0.95 * kept["first"]


def test_the_cached_top_trains_as_the_asked_one(finetune, dense, tmp_path):
    flags = ("--distill_from", dense, "--dtype", "float32", "--skip_evaluation", "--distill_top_k", "20")
    assert finetune(tmp_path / "a", *flags) == 0
    assert finetune(tmp_path / "b", *flags, "--distill_cache") == 0
    assert losses_of(tmp_path / "b") == pytest.approx(losses_of(tmp_path / "a"), rel=1e-2)


def test_the_teacher_distilled_from_itself_has_nothing_to_learn(finetune, dense, tmp_path):
    assert finetune(tmp_path / "out", "--distill_from", dense, "--dtype", "float32", model=dense) == 0
    assert losses_of(tmp_path / "out")[0] == pytest.approx(0, abs=1e-5)


def test_what_is_recovered_is_saved_again_and_pruned_again(result, tokenizer, tmp_path, tokens):
    again = load_pruned(result)
    with torch.no_grad():
        expected = again(tokens).logits
    save_pruned(again, tokenizer, tmp_path)
    with torch.no_grad():
        assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(tokens).logits, expected)


def test_the_pruning_report_gains_a_recovery_section(finetune, pruned_model, tmp_path):
    model = pruned_model()
    report = dict.fromkeys(("reached_ratio", "reached_ratio_decoder"), 0.2)
    report |= {
        "schema_version": 1,
        "command": "hgsp prune",
        "asked_ratio": 0.2,
        "base_model": "owner/dense",
        "importance_method": "taylor",
        "layers": [],
    }
    sizes = ("params", "weight_bytes", "kv_cache_bytes_per_token")
    report |= {f"{size}_{when}": 8 for size in sizes for when in ("before", "after")}
    report["evaluation"] = {"before": {}, "after": {}}
    (model / "pruning_analysis.json").write_text(json.dumps(report))
    assert finetune(tmp_path / "out", "--skip_evaluation", model=model) == 0
    report = json.loads((tmp_path / "out" / "pruning_analysis.json").read_text())
    assert report["asked_ratio"] == 0.2
    assert report["recovery"]["steps"] == 4


REFUSED = {
    "no model": (["--pruned_model", "nowhere/at/all"], "nowhere/at/all"),
    "no data": (["--data_path", "no-such-file.jsonl"], "no-such-file.jsonl"),
    "nothing left": (["--cutoff_len", "10"], "--cutoff_len 10"),
    "learning rate 0": (["--learning_rate", "0"], "--learning_rate"),
    "learning rate inf": (["--learning_rate", "inf"], "--learning_rate"),
    "tried rates": (["--probe_learning_rates", "1e-3", "0"], "--probe_learning_rates"),
    "no probe steps": (["--probe_learning_rates", "1e-3", "--probe_steps", "0"], "--probe_steps"),
    "nothing to judge rates by": (["--probe_learning_rates", "1e-3", "--val_size", "0"], "--val_size"),
    "no epochs": (["--num_epochs", "0"], "--num_epochs"),
    "no steps": (["--max_steps", "0"], "--max_steps"),
    "batch": (["--batch_size", "7", "--micro_batch_size", "3"], "the nearest are 6 or 9"),
    "small batch": (["--batch_size", "2", "--micro_batch_size", "4"], "the nearest is 4"),
    "linears": (["--lora_target_modules", "q_proj", "lm_head"], "lm_head"),
    "teacher": (["--distill_from", "nowhere/at/all"], "nowhere/at/all"),
    "cache alone": (["--distill_cache", "--distill_top_k", "5"], "--distill_from"),
    "cache of all": (["--distill_cache", "--distill_from", "x"], "--distill_top_k"),
    "weight": (["--distill_from", "x", "--distill_weight", "0"], "--distill_weight"),
    "teacher in a .gguf": (["--distill_from", "x.gguf", "--distill_offload"], "x.gguf"),
    "long sequences": (["--cutoff_len", "513"], "--cutoff_len of at most 512"),
    "long windows": (["--eval_seq_len", "513"], "--eval_seq_len of at most 512"),
    "nothing to resume": (["--resume"], "--resume"),
    "too many held out": (["--val_size", "28"], "--val_size"),
    "device": (["--device", "cuda:77"], "--device"),
    "reporter": (["--report_to", "trackio"], "trackio"),
    "text": (["--eval_tasks", "wikitext103"], "--eval_tasks"),
    "dtype": (["--device", "auto"], "--device"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_in_one_line_before_anything_is_loaded(case, finetune, tmp_path, monkeypatch, capsys):
    flags, message = REFUSED[case]

    def loaded(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("hgsp.pipeline.recover.load_pruned", loaded)
    assert finetune(tmp_path / "out", *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: expected")
    assert error.count("\n") == 1
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written_is_refused(finetune, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert finetune(tmp_path / "file" / "out") == 2
    assert "--output_dir" in capsys.readouterr().err
    assert finetune(tmp_path / "file") == 2
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_tokenizer_of_another_model_is_refused(finetune, saved, make, tmp_path, capsys):
    small = saved(make("llama-8q4kv", vocab_size=100, bos_token_id=1, eos_token_id=2), "small")
    assert finetune(tmp_path / "out", model=small) == 2
    assert "tokenizer of at most 100 tokens" in capsys.readouterr().err


def test_a_teacher_without_weights_is_refused(finetune, dense, tmp_path, capsys):
    (dense / "model.safetensors").unlink()
    assert finetune(tmp_path / "out", "--distill_from", dense) == 2
    assert f"weights in '{dense}'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_what_is_found_wrong_before_a_state_is_saved_is_not_in_the_way_afterwards(finetune, tmp_path):
    (tmp_path / "short.txt").write_text("a")
    flags = ("--eval_tasks", tmp_path / "short.txt", "--max_steps", "1")
    assert finetune(tmp_path / "out", *flags) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]
    assert finetune(tmp_path / "out", *flags, "--skip_evaluation") == 0


def test_missing_packages_are_named_with_what_to_install(finetune, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hgsp.recovery.config.find_spec", lambda name: None if name == "peft" else object())
    assert finetune(tmp_path / "out") == 2
    assert "pip install -e '.[finetune]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "hint"),
    [(torch.OutOfMemoryError("CUDA out of memory"), "--micro_batch_size"), (KeyboardInterrupt(), "--resume")],
)
def test_memory_and_interrupts_end_with_what_to_do(error, hint, finetune, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(training, "train", fail)
    assert finetune(tmp_path / "out", "--skip_evaluation") == 1
    assert hint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_hgsp_finetune_is_the_same_command(rows, pruned, tmp_path):
    settings = [part for pair in SETTINGS.items() for part in pair]
    paths = ("--pruned_model", pruned, "--data_path", rows, "--output_dir", tmp_path / "out", "--skip_evaluation")
    assert cli.main(["finetune", *settings, *map(str, paths)]) == 0
    assert (tmp_path / "out" / "config.json").is_file()
