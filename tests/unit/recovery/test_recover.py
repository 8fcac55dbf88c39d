"""Training a model in memory: the weights of the command, the model given untouched unless asked otherwise."""

import inspect
import json
import logging
import os

import pytest
import torch

import finetune_lora
from conftest import make_tiny
from hgsp.errors import InputError
from hgsp.models.checkpoint import load_pruned, save_pruned
from hgsp.pruning.surgery import apply_plan
from hgsp.recovery.config import TrainingConfig
from hgsp.recovery.recover import recover
from plans import mixed_plan

SHORT = {"max_steps": 2, "batch_size": 4, "micro_batch_size": 2, "cutoff_len": 64, "learning_rate": 1e-2}


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"instruction": f"Count to {n}.", "output": " ".join(map(str, range(n)))} for n in range(2, 26)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def pruned(tmp_path, tokenizer):
    folder = tmp_path / "pruned"
    folder.mkdir()
    model = make_tiny("llama-8q4kv")
    save_pruned(apply_plan(model, mixed_plan(model)), tokenizer, folder)
    return folder


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("method", ["lora", "full"])
def test_weights_are_those_of_the_command(pruned, rows, tokenizer, tmp_path, method):
    flags = [part for name, value in SHORT.items() for part in (f"--{name}", str(value))]
    paths = ["--pruned_model", str(pruned), "--data_path", rows, "--output_dir", str(tmp_path / "out")]
    command = [*paths, *flags, "--method", method, "--skip_evaluation", "--no_bin", "--device", "cpu"]
    assert finetune_lora.main(command) == 0
    model = load_pruned(pruned)
    before = state_of(model)
    recovered = recover(model, tokenizer, rows, method=method, **SHORT)
    assert equal(state_of(recovered), state_of(load_pruned(tmp_path / "out")))
    assert not equal(state_of(recovered), before)
    assert equal(state_of(model), before)
    assert (recovered.training, recovered.dtype, recovered.config.use_cache) == (False, model.dtype, True)
    assert not any("lora" in name for name, _ in recovered.named_modules())


def test_in_place_takes_the_model_over(pruned, rows, tokenizer):
    model = load_pruned(pruned)
    copied = recover(model, tokenizer, rows, **SHORT)
    assert recover(model, tokenizer, rows, inplace=True, **SHORT) is model
    assert equal(state_of(model), state_of(copied))


def test_a_teacher_in_memory_is_the_same_as_by_name(pruned, rows, tokenizer, saved):
    dense = saved(make_tiny("llama-8q4kv"))
    by_name = recover(load_pruned(pruned), tokenizer, rows, distill_from=str(dense), **SHORT)
    teacher = load_pruned(dense, dtype=torch.bfloat16)  # as one that is named is loaded
    in_memory = recover(load_pruned(pruned), tokenizer, rows, distill_from=teacher, **SHORT)
    without = recover(load_pruned(pruned), tokenizer, rows, **SHORT)
    assert equal(state_of(by_name), state_of(in_memory))
    assert not equal(state_of(by_name), state_of(without))


def test_a_teacher_with_another_vocabulary_is_refused(pruned, rows, tokenizer):
    other = make_tiny("llama-8q4kv", vocab_size=300)
    with pytest.raises(InputError, match="vocabulary of 258 tokens; got 300 in the teacher"):
        recover(load_pruned(pruned), tokenizer, rows, distill_from=other, **SHORT)


def test_logger_environment_and_folder_are_left_as_they_were(pruned, rows, tokenizer, tmp_path):
    logger = logging.getLogger("hgsp")
    before = (logger.level, logger.propagate, list(logger.handlers), dict(os.environ), sorted(tmp_path.iterdir()))
    recover(load_pruned(pruned), tokenizer, rows, **SHORT)
    after = (logger.level, logger.propagate, list(logger.handlers), dict(os.environ), sorted(tmp_path.iterdir()))
    assert after == before


def test_defaults_are_those_of_the_command():
    parameters = inspect.signature(recover).parameters
    defaults = {name: item.default for name, item in parameters.items() if item.default is not inspect.Parameter.empty}
    del defaults["inplace"], defaults["progress"]
    assert defaults == {name: getattr(TrainingConfig, name) for name in defaults}
