"""``--rounds`` from the command line."""

import pytest
import torch

from hgsp.cli import cut
from hgsp.pipeline import stages
from hgsp.pruning.plan import PrunePlan
from pruning import analysis_of, tensors_of


@pytest.mark.parametrize("method", ["taylor", "wanda", "random"])
def test_rounds_spend_the_whole_budget_and_never_bring_back_what_left(prune, monkeypatch, method):
    plans, decide_once = [], stages.decide

    def watched(*arguments):
        plans.append(decide_once(*arguments).plan)
        return decide_once(*arguments)

    monkeypatch.setattr(stages, "decide", watched)
    code, folder = prune("rounds", "--rounds", "3", "--pruning_ratio", "0.3", "--importance_method", method)
    assert code == 0
    first, second, third = ([(set(keep.kv_groups), set(keep.mlp_channels)) for keep in plan.layers] for plan in plans)
    for earlier, later in ((first, second), (second, third)):
        assert all(new[kind] <= old[kind] for old, new in zip(earlier, later, strict=True) for kind in (0, 1))
        assert earlier != later
    report = analysis_of(folder)
    assert report["scoring"]["rounds"] == 3
    assert report["reached_ratio"] == pytest.approx(0.3, abs=0.01)
    assert report["params_after"] == sum(tensor.numel() for tensor in tensors_of(folder).values())
    assert not [path for path in folder.rglob("*") if "reconstructed" in path.name]


def test_rounds_offloaded_equal_resident_and_differ_from_one_cut(prune):
    flags = ("--rounds", "2", "--pruning_ratio", "0.3")
    folders = [
        prune("resident", *flags)[1],
        prune("offloaded", *flags, "--offload")[1],
        prune("once", *flags, "--rounds", "1")[1],
    ]
    plans = [PrunePlan.read_json(folder / "prune_plan.json").layers for folder in folders]
    assert plans[0] == plans[1] != plans[2]
    expected, got = tensors_of(folders[0]), tensors_of(folders[1])
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


def test_rounds_go_on_from_a_scores_file_with_its_method(prune):
    """The first round needs no scoring; the others score by the method of the file."""
    flags = ("--rounds", "2", "--importance_method", "fisher")
    _, whole = prune("whole", *flags)
    code, again = prune("again", "--rounds", "2", "--scores", whole / "scores.npz", recipe=cut.main)
    assert code == 0
    expected, got = tensors_of(whole), tensors_of(again)
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    code, _ = prune("collapsing", *flags, "--temperature", "1.0", "--epsilon", "0.7", "--pruning_ratio", "0.3")
    assert code == 0
