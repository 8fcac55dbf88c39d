"""Two evaluations into one results.json at once: neither loses what the other measured."""

import json

import pytest

from hgsp.console.report_schema import DENSE, DONE, PRUNED
from hgsp.errors import InputError
from hgsp.evaluation.results import Metric, Results, TaskResult


def measured(task, role=PRUNED, value=2.0, model="weights"):
    return TaskResult(role, task, DONE, model, {}, (Metric("token_ppl", value),))


def opened(folder):
    results = Results.open(folder)
    results.enter(PRUNED, "model", "weights")
    return results


def test_results_that_another_evaluation_wrote_meanwhile_are_kept(tmp_path):
    one, other = opened(tmp_path), opened(tmp_path)
    for task in ("c4", "ptb"):
        one.add(measured(task))
        one.write({})
        other.add(measured(f"my_{task}.txt"))
        other.write({})
    one.add(measured("c4", value=3.0))
    one.write({"collapsed": False})
    found = Results.open(tmp_path)
    assert {item.task: item.metrics[0].value for item in found.results} == {
        **{"c4": 3.0, "ptb": 2.0},
        **{"my_c4.txt": 2.0, "my_ptb.txt": 2.0},
    }
    assert one.results == found.results
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_two_evaluations_of_different_models_in_one_role_do_not_mix(tmp_path):
    one, other = opened(tmp_path), opened(tmp_path)
    one.enter(DENSE, "dense", "a")
    one.add(measured("c4", DENSE, model="a"))
    one.write({})
    other.enter(DENSE, "another", "b")
    other.add(measured("c4", DENSE, model="b"))
    other.write({})
    one.add(measured("ptb", DENSE, model="a"))
    with pytest.raises(InputError, match=r"one dense model .* measures another there.*another --output"):
        one.write({})
    assert [item.model for item in Results.open(tmp_path).results] == ["b"]


def test_results_of_another_measured_model_are_refused_by_both(tmp_path):
    one, other = opened(tmp_path), Results.open(tmp_path)
    other.enter(PRUNED, "other", "others")
    one.write({})
    with pytest.raises(InputError, match="to hold results of other"):
        other.write({})


@pytest.mark.parametrize(
    "change",
    [{"metrics": []}, {"role": "teacher"}, {"status": "later"}, {"seconds": -1}, {"protocol": {"seq_len": []}}],
)
def test_an_entry_of_another_form_is_named(tmp_path, change):
    results = opened(tmp_path)
    results.add(measured("c4"))
    results.write({})
    content = json.loads(results.path.read_text())
    content["results"][0] |= change
    results.path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"results\.json.*another --output") as refused:
        Results.open(tmp_path)
    assert next(iter(change)) in str(refused.value) or "token_ppl of c4" in str(refused.value)
