"""The budget search as one stage: its plan, and the words of its report, which are a schema."""

import numpy as np
import pytest
import torch

from hgsp.data.calibration import Calibration
from hgsp.errors import InputError
from hgsp.models.decoder import Decoder
from hgsp.models.geometry import geometry_of
from hgsp.models.loaded import LoadedModel
from hgsp.pruning.select import select_groups
from hgsp.pruning.shape_rules import ShapeRules
from hgsp.scoring.groups import build_group_table
from hgsp.scoring.score import score_groups
from hgsp.search.allocation import SearchOptions, search_allocation
from hgsp.search.search import SearchProblem

TEXT = Calibration(torch.randint(0, 256, (8, 24), generator=torch.Generator().manual_seed(3)), "random bytes", 3)
STEPS = 4


@pytest.fixture
def loaded(make):
    return LoadedModel(Decoder(make("llama-8q4kv", num_hidden_layers=4)), None, "float32")


@pytest.fixture
def problem(loaded):
    """A wrong prior makes blocks incomparable; the first layer is frozen."""
    geometry = geometry_of(loaded.model)
    table = build_group_table(score_groups(loaded.decoder, "fisher", TEXT).by_layer, geometry)
    wrong = np.array([[1, 1000], [1, 100], [1, 10], [1, 1]])
    sizes = ShapeRules(1, 8, freeze_first=1)
    return SearchProblem(table.with_prior(wrong), geometry, geometry.decoder_params // 4, sizes, None, {"seed": 3})


@pytest.mark.parametrize(
    ("reconstruct", "report_name"),
    [("none", "GradientMoves"), ("lstsq", "ProfileMoves"), ("blocks", "ProfileMoves"), ("bias", "ProfileMoves")],
)
def test_the_plan_is_selected_from_the_table_and_reported_by_the_schema(
    loaded, problem, tmp_path, reconstruct, report_name
):
    state_file = tmp_path / "state.json"
    arguments = (loaded, problem, TEXT, SearchOptions(STEPS, reconstruct))
    found = search_allocation(*arguments, tensors_dir=tmp_path / "tensors", state_file=state_file)
    expected = select_groups(found.table, problem.geometry, problem.budget_params, problem.shape_rules)
    assert found.plan.layers == expected.layers
    assert found.plan.layers[0].shape == problem.geometry.shapes[0]
    assert found.plan.provenance == {"seed": 3}
    assert found.plan.writer_bias == (reconstruct == "bias")
    assert found.found["moves"] == report_name
    assert found.found["steps"] == len(found.found["kl_of_steps"]) == STEPS
    assert found.found["kl_after"] == min(found.found["kl_before"], *found.found["kl_of_steps"])
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
    in_memory = search_allocation(*arguments)
    assert in_memory.found == found.found
    assert in_memory.plan == found.plan


def test_an_unknown_reconstruction_is_refused():
    with pytest.raises(InputError, match="use one of none, bias, lstsq, blocks"):
        SearchOptions(1, "ridge")
