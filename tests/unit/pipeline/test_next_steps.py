"""Next commands work where the run did."""

import shlex

import pytest

from hgsp.console.flags import parse
from hgsp.evaluation.config import EvaluationConfig
from hgsp.evaluation.verdict import HAS_COLLAPSED, NEEDS_RECOVERY, USABLE
from hgsp.pipeline.config import PruneConfig
from hgsp.pipeline.next_steps import OFFLINE_VARIABLES, after_pruning, is_offline
from hgsp.pipeline.recovery_config import RecoveryConfig


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in (*OFFLINE_VARIABLES, "HGSP_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)


def commands(tmp_path, verdict, computed_on="cpu", **changes):
    settings = {"base_model": "org/model", "output_name": "o", "pruning_ratio": 0.2, **changes}
    found = after_pruning(PruneConfig(**settings), tmp_path / "my result", verdict, computed_on)
    parsed = []
    for command in map(shlex.split, found):
        options = {"finetune": RecoveryConfig, "evaluate": EvaluationConfig}[command[1]]
        parsed.append(parse(options, command[2:], prog="prog", description=""))
    return parsed


@pytest.mark.parametrize("verdict", [NEEDS_RECOVERY, HAS_COLLAPSED])
def test_recovery_comes_first_where_it_is_needed(tmp_path, verdict):
    recovery, evaluation = commands(tmp_path, verdict)
    folder = str(tmp_path / "my result")
    assert (recovery.pruned_model, recovery.output_dir) == (folder, f"{folder}_finetuned")
    assert (recovery.data_path, recovery.distill_from) == ("yahma/alpaca-cleaned", None)
    assert (evaluation.model_path, evaluation.base_model, evaluation.compare) == (folder, "org/model", True)
    assert evaluation.task_names == ("wikitext2", "c4", "lambada", "efficiency")
    assert evaluation.max_windows == 16  # as the run itself on a CPU


@pytest.mark.parametrize(("verdict", "finetune"), [(USABLE, False), (None, False), (NEEDS_RECOVERY, True)])
def test_no_recovery_is_proposed_where_none_is_needed_or_one_follows(tmp_path, verdict, finetune):
    (evaluation,) = commands(tmp_path, verdict, "cuda:0", finetune=finetune)
    assert evaluation.max_windows is None


def test_offline_stays_offline(tmp_path):
    """The model and the texts were local, and so are those of the next commands."""
    local = {"base_model": str(tmp_path), "dataset": "builtin", "eval_tasks": "builtin", "device": "cpu"}
    recovery, evaluation = commands(tmp_path, NEEDS_RECOVERY, **local)
    assert (recovery.data_path, recovery.eval_tasks, recovery.distill_from) == ("builtin", "builtin", str(tmp_path))
    assert (recovery.device, evaluation.device) == ("cpu", "cpu")
    assert evaluation.task_names == ("builtin", "efficiency")


@pytest.mark.parametrize("dataset", ["wikitext2", "wikitext2,c4"])
def test_a_data_folder_and_all_texts_are_passed_on(tmp_path, dataset):
    local = {"base_model": str(tmp_path), "data_dir": "texts", "dataset": dataset}
    recovery, evaluation = commands(tmp_path, NEEDS_RECOVERY, **local)
    assert (recovery.data_path, recovery.data_dir, evaluation.data_dir) == (dataset, "texts", "texts")
    assert evaluation.task_names == ("wikitext2", "c4", "efficiency")


def test_what_makes_a_run_offline(tmp_path, monkeypatch):
    here = str(tmp_path)
    assert is_offline(here, ["builtin"], None)
    assert is_offline(here, ["c4"], "texts")
    assert not is_offline(here, ["builtin", "c4"], None)
    assert not is_offline("org/model", ["builtin"], None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert is_offline("org/model", ["c4"], None)
