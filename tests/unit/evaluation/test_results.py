"""The results file: complete or untouched, never a number for a failure, nothing measured twice or compared unlike."""

import json
import math
import os

import huggingface_hub
import pytest

import hgsp.evaluation.models
from hgsp.console.report_schema import DENSE, DONE, FAILED, PRUNED
from hgsp.errors import InputError, NumericalError
from hgsp.evaluation.config import EvaluationConfig
from hgsp.evaluation.models import models_under_test
from hgsp.evaluation.results import (
    Metric,
    Results,
    TaskResult,
    canonical_path,
    model_identity,
)


def result(role=PRUNED, task="c4", status=DONE, model="weights", value=2.0, **request):
    metrics = (Metric("token_ppl", value, stderr=0.5, higher_is_better=False),) if status == DONE else ()
    reason = None if status == DONE else "because"
    return TaskResult(role, task, status, model, request, metrics, 3, "summary", {"seq_len": 8}, reason, 1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_is_refused(value):
    with pytest.raises(NumericalError, match="token_ppl is"):
        Metric("token_ppl", value)


def test_what_is_written_is_read_back(tmp_path):
    results = Results.open(tmp_path)
    results.enter(PRUNED, "model", "weights")
    results.add(result(limit=1))
    results.add(result(task="ptb", status=FAILED))
    results.write({"collapsed": None})
    again = Results.open(tmp_path)
    assert again.results == results.results
    assert again.models == {PRUNED: {"path": "model", "identity": "weights"}}


def test_a_failed_task_has_a_reason_and_no_number(tmp_path):
    results = Results.open(tmp_path)
    results.add(result(status=FAILED))
    results.write({})
    (stored,) = json.loads(results.path.read_text())["results"]
    assert (stored["status"], stored["reason"], stored["metrics"]) == ("failed", "because", [])


def test_same_request_replaces_and_another_stands_beside(tmp_path):
    results = Results.open(tmp_path)
    results.add(result(value=1.0, limit=1))
    results.add(result(value=2.0, limit=1))
    results.add(result(value=3.0, limit=None))
    results.add(result(role=DENSE, value=4.0, limit=1))
    assert [item.metrics[0].value for item in results.results] == [2.0, 3.0, 4.0]
    found = results.done(PRUNED, result(limit=1).key)
    assert found is not None
    assert found.metrics[0].value == 2.0
    assert results.done(PRUNED, result(limit=5).key) is None


def test_success_takes_the_place_of_a_failure_before_measuring(tmp_path):
    results = Results.open(tmp_path)
    results.add(result(status=FAILED))
    assert results.done(PRUNED, result(status=FAILED).key) is None
    results.add(result(limit=1))
    assert [item.status for item in results.results] == [DONE]


def test_results_of_other_weights_are_let_go(tmp_path):
    results = Results.open(tmp_path)
    results.enter(PRUNED, "model", "old")
    results.add(result(model="old"))
    results.add(result(role=DENSE, model="dense"))
    results.enter(PRUNED, "model", "new")
    assert [item.role for item in results.results] == [DENSE]


def test_a_file_of_another_model_is_not_written_over(tmp_path):
    results = Results.open(tmp_path)
    results.enter(PRUNED, "model", "weights")
    with pytest.raises(InputError, match=r"results of model.*another --output"):
        results.enter(PRUNED, "other", "others")


def test_a_model_that_was_moved_keeps_its_results(tmp_path):
    results = Results.open(tmp_path)
    results.enter(PRUNED, "model", "weights")
    results.add(result())
    results.enter(PRUNED, "elsewhere", "weights")
    assert results.models[PRUNED] == {"path": "elsewhere", "identity": "weights"}
    assert len(results.results) == 1


@pytest.mark.parametrize(
    "content", ["", "{}", '{"schema_version": 99}', "[1]", '{"schema_version": 1, "results": [{}]}']
)
def test_a_file_that_is_not_ours_is_refused_and_kept(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(InputError, match="another --output"):
        Results.open(tmp_path)
    assert path.read_text() == content


def test_a_bin_beside_its_config_is_its_folder(tmp_path):
    for name in ("config.json", "model.safetensors", "pruned_model.bin"):
        (tmp_path / name).write_text(name)
    assert canonical_path(str(tmp_path / "pruned_model.bin")) == canonical_path(str(tmp_path))
    assert model_identity(str(tmp_path / "pruned_model.bin")) == model_identity(str(tmp_path))
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "pruned_model.bin").write_text("weights")
    assert canonical_path(str(alone / "pruned_model.bin")).endswith("pruned_model.bin")


def test_identity_changes_with_the_weights_and_not_with_reports(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_text("weights")
    before = model_identity(str(tmp_path))
    (tmp_path / "pruning_analysis.json").write_text("{}")
    assert model_identity(str(tmp_path)) == before
    times = weights.stat()
    os.utime(weights, (1, 1))
    assert model_identity(str(tmp_path)) == before
    weights.write_text("WEIGHTS")  # as many bytes
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert model_identity(str(tmp_path)) != before


def test_a_hub_id_that_is_not_cached_is_its_own_identity():
    assert model_identity("nobody/nothing") == "nobody/nothing"


def test_a_hub_model_is_identified_by_its_commit_from_the_first_run_on(make, tmp_path, monkeypatch):
    """It is in the cache once config.json was asked for."""
    cached = tmp_path / "snapshots" / "commit" / "config.json"

    def download(name):
        cached.parent.mkdir(parents=True, exist_ok=True)
        cached.touch()
        return make("llama-8q4kv").config

    monkeypatch.setattr(hgsp.evaluation.models, "config_of", download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(cached) if cached.exists() else None)
    config = EvaluationConfig(model_path="some/model")
    identities = [model.identity for _ in range(2) for model in models_under_test(config)]
    assert identities == ["some/model@commit"] * 2
