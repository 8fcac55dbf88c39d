"""Recovery of mixtures of experts: adapters on attention alone, said at run time."""

import logging

import pytest

from experts import channels_plan, make_moe, uneven_plan
from hgsp.errors import InputError
from hgsp.evaluation.metrics.efficiency import static_costs
from hgsp.pruning.surgery import apply_plan
from hgsp.recovery.config import PROJECTIONS
from hgsp.recovery.training import adapter_targets


@pytest.mark.parametrize("plan_of", [None, uneven_plan, channels_plan])
def test_adapters_go_to_attention_alone(plan_of, caplog):
    """Of stock classes, peft would train parts of experts too; of ours, none."""
    model = make_moe("olmoe")
    model = apply_plan(model, plan_of(model)) if plan_of else model
    with caplog.at_level(logging.WARNING):
        assert adapter_targets(model, PROJECTIONS) == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert "experts get no adapters" in caplog.text
    with pytest.raises(InputError, match="experts are no Linears"):
        adapter_targets(model, ["down_proj"])


def test_a_token_pays_for_the_experts_that_it_uses():
    """Two of eight: fewer experts in a layer save nothing but rows of the router."""
    model = make_moe("mixtral")
    before = static_costs(model).linear_macs_per_token
    attention = 3 * (2 * 64 * 64 + 2 * 64 * 32)
    assert before == attention + 3 * (2 * 3 * 64 * 24 + 8 * 64) + 64 * 258
    pruned = apply_plan(model, uneven_plan(model))
    heads = 2 * 2 * 64 * 16 + 2 * 2 * 64 * 8  # of the KV groups that leave: two in the first layer, one in the second
    saved = heads + heads // 2 + (5 + 3) * 64
    assert static_costs(pruned).linear_macs_per_token == before - saved
