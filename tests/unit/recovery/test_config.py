"""Options of recovery: names and defaults of the contract, and how batches are divided."""

import json
import shlex
import shutil
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import save_file
from transformers import TrainerState

from hgsp.console.flags import arguments_of, parse
from hgsp.errors import InputError
from hgsp.evaluation.config import EvaluationConfig
from hgsp.pipeline.config import PruneConfig
from hgsp.pipeline.hints import batch_hint
from hgsp.pipeline.next_steps import after_recovery
from hgsp.pipeline.recovery_config import RecoveryConfig, recovery_after_pruning
from hgsp.recovery.config import num_updates, steps_per_update
from hgsp.recovery.resume import resumable_run
from hgsp.recovery.trainer_states import last_complete_state
from hgsp.recovery.training import steps_between_evaluations

REQUIRED = ["--pruned_model", "results/M/p20/pruned_model.bin", "--output_dir", "results/M/p20_finetuned"]

#: The contract's command, by hand.
PROMISED = {
    "data_path": "yahma/alpaca-cleaned",
    "num_epochs": 3,
    "learning_rate": 3e-4,
    "batch_size": 128,
    "micro_batch_size": 4,
    "lora_r": 8,
    "lora_alpha": 16,
    "device": None,
}


def parsed(*argv):
    return parse(RecoveryConfig, [*REQUIRED, *argv], prog="prog", description="")


@pytest.mark.parametrize("name", PROMISED)
def test_defaults_are_those_of_the_contract(name):
    assert getattr(parsed(), name) == PROMISED[name]


def test_all_seven_projections_get_adapters_unless_told_otherwise():
    assert len(parsed().lora_target_modules) == 7
    assert parsed("--lora_target_modules", "q_proj", "v_proj").lora_target_modules == ("q_proj", "v_proj")


def test_the_pruning_recipes_flags_arrive(tmp_path):
    asked = {"finetune_data_path": "d", "finetune_epochs": 2, "finetune_lr": 1e-3, "finetune_batch_size": 16}
    asked |= {"finetune_micro_batch_size": 8, "lora_r": 4, "lora_alpha": 32}
    common = {"seed": 7, "no_bin": True, "overwrite": True, "device": "cpu", "eval_max_windows": 3}
    config = PruneConfig(base_model="m", output_name="o", pruning_ratio=0.2, dataset="builtin", **asked, **common)
    recovery = recovery_after_pruning(config, tmp_path / "p20")
    assert (recovery.pruned_model, recovery.output_dir) == (str(tmp_path / "p20"), str(tmp_path / "p20_finetuned"))
    translated = {"finetune_data_path": "data_path", "finetune_epochs": "num_epochs", "finetune_lr": "learning_rate"}
    for name, value in (asked | common).items():
        assert getattr(recovery, translated.get(name, name.removeprefix("finetune_"))) == value


def test_learning_rates_are_tried_in_one_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"several processes.*give its choice as --learning_rate"):
        parsed("--probe_learning_rates", "1e-3", "3e-3")


@pytest.mark.parametrize(("batch", "micro", "processes", "steps"), [(128, 4, 1, 32), (128, 4, 8, 4), (4, 4, 1, 1)])
def test_the_batch_is_shared_out_over_processes_and_steps(batch, micro, processes, steps):
    config = parsed("--batch_size", str(batch), "--micro_batch_size", str(micro))
    assert steps_per_update(config, processes) == steps


def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_that_do():
    with pytest.raises(InputError, match=r"multiple of 12 .*3 processes.*the nearest are 120 or 132"):
        steps_per_update(parsed(), 3)


@pytest.mark.parametrize(
    ("sequences", "flags", "updates"),
    [
        (1000, [], 24),  # 250 micro batches, 32 per update: 8 updates per epoch
        (1000, ["--num_epochs", "0.5"], 4),
        (10, [], 3),  # fewer than one batch: one update per epoch
        (1000, ["--max_steps", "5"], 5),
    ],
)
def test_the_number_of_updates_is_known_before(sequences, flags, updates):
    assert num_updates(sequences, parsed(*flags), 1) == updates


@pytest.mark.parametrize(
    ("sequences", "flags", "batch"),
    [
        (2000, [], 28),  # 3 epochs of 16 steps; 215 steps are asked for
        (2000, ["--micro_batch_size", "1"], 30),
        (100, [], 4),  # not below one forward pass
        (51760, [], None),  # 1,215 steps
        (2000, ["--batch_size", "4"], None),  # as small as it can be, and enough steps
        (100, ["--batch_size", "4"], None),  # as small as it can be
        (2000, ["--max_steps", "16"], None),  # asked for
    ],
)
def test_few_steps_call_for_smaller_batches(sequences, flags, batch):
    config = parsed(*flags)
    found = batch_hint(config, sequences, 1)
    if batch is None:
        assert found is None
        return
    steps = [num_updates(sequences, used, 1) for used in (config, replace(config, batch_size=batch))]
    assert steps[0] < 100
    assert found is not None
    assert found.startswith(f"hint: {steps[0]} optimizer steps are few; --batch_size {batch} makes {steps[1]} of")


@pytest.mark.parametrize(
    ("steps", "batch", "held_out", "every"),
    [(1000, 128, 128, 100), (60, 8, 128, 60), (60, 8, 16, 10), (1, 128, 128, 1), (5, 4, 0, 1)],
)
def test_evaluation_never_costs_more_than_a_share_of_training(steps, batch, held_out, every):
    """480 sequences trained on pay for no evaluation of 128 but the last."""
    assert steps_between_evaluations(steps, batch, held_out) == every


def test_the_next_command_can_be_pasted_whatever_the_paths_are():
    config = parsed("--output_dir", "my models/out", "--distill_from", "the teacher")
    program, command, *flags = shlex.split(after_recovery(config, "cpu"))
    assert (program, command) == ("hgsp", "evaluate")
    given = parse(EvaluationConfig, flags, prog="prog", description="")
    assert (given.model_path, given.recovered_model) == (config.pruned_model, config.output_dir)
    assert (given.base_model, given.compare) == ("the teacher", True)


def write_trainer_state(folder, step, **changes):
    """Write a state as the Trainer does, with tiny tensors."""
    place = folder / f"checkpoint-{step}"
    place.mkdir(parents=True)
    save_file({"weight": torch.zeros(2)}, place / "adapter_model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"step": step}, place / name)
    content = asdict(TrainerState(global_step=step)) | changes
    (place / "trainer_state.json").write_text(json.dumps(content))
    return place


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("trainer_state.json", '{"ha'),
        ("trainer_state.json", ""),
        ("trainer_state.json", "[]"),
        ("trainer_state.json", json.dumps(asdict(TrainerState(global_step=5)))),
        ("trainer_state.json", json.dumps(asdict(TrainerState(global_step=6)) | {"more": 1})),
        ("trainer_state.json", json.dumps(asdict(TrainerState(global_step=6, best_model_checkpoint="/etc")))),
        ("trainer_state.json", json.dumps(asdict(TrainerState(global_step=6, best_model_checkpoint="checkpoint-1")))),
        ("optimizer.pt", None),
        ("optimizer.pt", "cut short"),
        ("adapter_model.safetensors", ""),
    ],
)
def test_a_damaged_state_is_set_aside_and_the_one_before_it_taken(file, content, tmp_path, caplog):
    complete, damaged = (write_trainer_state(tmp_path, step) for step in (4, 6))
    (tmp_path / "checkpoint-8").mkdir()  # a run was killed while it wrote this one
    if content is None:
        (damaged / file).unlink()
    else:
        (damaged / file).write_text(content)
    assert last_complete_state(tmp_path) == complete
    assert (tmp_path / "checkpoint-6.damaged").is_dir()
    assert "checkpoint-6 is damaged" in caplog.text
    assert last_complete_state(tmp_path / "nowhere") is None


def test_the_best_state_is_found_after_its_run_was_moved(tmp_path):
    write_trainer_state(tmp_path, 2)
    last = write_trainer_state(tmp_path, 4, best_model_checkpoint="/elsewhere/states/checkpoint-2")
    assert last_complete_state(tmp_path) == last


def test_a_configuration_can_be_written_as_the_command_line_that_makes_it():
    config = RecoveryConfig(
        pruned_model="my model", output_dir="out", packing=True, lora_target_modules=("q_proj", "v_proj"), max_steps=3
    )
    arguments = arguments_of(config)
    assert parse(RecoveryConfig, arguments, prog=None, description="") == config
    expected = ["--pruned_model", "my model", "--output_dir", "out", "--max_steps", "3", "--packing"]
    assert sorted(arguments) == sorted([*expected, "--lora_target_modules", "q_proj", "v_proj"])


@pytest.mark.parametrize(
    ("saved", "stays"),
    [("settings.json", False), ("states/checkpoint-2/trainer_state.json", True), ("parent/0/cache.json", True)],
)
def test_a_run_that_fails_leaves_only_what_can_be_resumed(saved, stays, tmp_path):
    config = parsed("--output_dir", str(tmp_path / "out"))

    def save_and_fail():
        (config.work_dir / saved).parent.mkdir(parents=True, exist_ok=True)
        (config.work_dir / saved).write_text("{}")
        if saved.endswith("trainer_state.json"):
            shutil.rmtree(config.work_dir / "states")
            write_trainer_state(config.work_dir / "states", 2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), resumable_run(config.work_dir, config.resume_settings, resume=False):
        save_and_fail()
    assert config.work_dir.exists() == stays
