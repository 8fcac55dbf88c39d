"""Measuring a model in memory: the numbers of the command, a mapping that prints, and a model left as it was."""

import json
import logging

import pytest
import torch

from hgsp.errors import InputError
from hgsp.evaluation.measure import evaluate
from hgsp.evaluation.metrics.efficiency import Workload
from hgsp.evaluation.metrics.ppl import PPLMetric

SHORT = {"seq_len": 64, "limit": 2}


@pytest.fixture
def model(make):
    return make("llama-8q4kv")


@pytest.fixture
def local(tmp_path):
    """A data folder with four items of LAMBADA."""
    (tmp_path / "lambada").mkdir()
    rows = [{"text": f"She saw the {number} dog"} for number in range(4)]
    (tmp_path / "lambada" / "lambada_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_perplexities_are_those_of_the_metric(model, tokenizer, text_file):
    found = evaluate(model, tokenizer, ["builtin", str(text_file)], **SHORT)
    metric = PPLMetric(model, tokenizer, ["builtin", str(text_file)], seq_len=64, max_windows=2)
    assert [found[task]["token_ppl"] for task in found] == list(metric.values())
    assert next(iter(found)) == "builtin"


def test_harness_tasks_and_efficiency_are_measured_too(model, tokenizer, local):
    pytest.importorskip("lm_eval", reason="the extra hgsp[eval] is not installed")
    found = evaluate(model, tokenizer, "lambada,efficiency,builtin", data_dir=local, **SHORT)
    assert set(found) == {"lambada", "efficiency", "builtin"}
    assert set(found["lambada"]) == {"acc", "target_ppl"}
    assert found.details["lambada"].num_items == 2
    assert found["efficiency"]["parameters"] == sum(parameter.numel() for parameter in model.parameters())


def test_efficiency_is_measured_within_the_positions_of_the_model(make, tokenizer):
    model, longest = make("llama-8q4kv", max_position_embeddings=40), []
    model.model.rotary_emb.register_forward_pre_hook(
        lambda _, __, named: longest.append(int(named["position_ids"].max())), with_kwargs=True
    )
    summary = evaluate(model, tokenizer, "efficiency").details["efficiency"].summary
    assert summary.startswith("prompt 24, decode 16")
    assert max(longest) == 39
    assert Workload().within(None) == Workload().within(512) == Workload()
    assert [Workload().within(limit).prompt_len + Workload().within(limit).decode_len for limit in (2, 17, 144)] == [
        *(2, 17, 144)
    ]


def test_an_evaluation_prints_as_a_table(model, tokenizer):
    found = evaluate(model, tokenizer, "builtin", **SHORT)
    value = f"{found['builtin']['token_ppl']:.3f}"
    heading, row = repr(found).splitlines()
    assert heading.split() == ["task", "metric", "value", "protocol"]
    assert row.startswith(f"builtin  token_ppl  {value} ±")
    assert "2 x 64 tokens" in row
    assert heading.index("protocol") == row.index(found.details["builtin"].summary)
    page = found._repr_html_()
    assert page.count("<tr>") == 2
    assert f"<td>{value} ±" in page


@pytest.mark.parametrize("training", [True, False])
def test_the_model_and_the_logger_are_left_as_they_were(model, tokenizer, training):
    logger = logging.getLogger("hgsp")
    before = (logger.level, logger.propagate, list(logger.handlers))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train(training).requires_grad_(True)
    evaluate(model, tokenizer, "builtin,efficiency", **SHORT)
    assert model.training is training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


@pytest.mark.parametrize(
    ("tasks", "changes", "message"),
    [
        (["builtin", "wikitxt"], {}, "did you mean wikitext"),
        (["builtin"], {"seq_len": 4096}, "a window of 2 to 512 tokens"),
        (["builtin"], {"limit": 0}, "--limit"),
        (["builtin"], {"batch_size": 0}, "--batch_size"),
    ],
)
def test_a_task_that_cannot_be_measured_raises(model, tokenizer, tasks, changes, message):
    with pytest.raises(InputError, match=message):
        evaluate(model, tokenizer, tasks, **changes)
