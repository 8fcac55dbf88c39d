"""Plans to look at: one line, a table, a plot; and files, whose bytes must not change."""

import io
import json
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from hgsp.errors import InputError
from hgsp.models.decoder import Decoder
from hgsp.models.geometry import geometry_of
from hgsp.pruning.plan import PrunePlan
from hgsp.pruning.select import select_groups
from hgsp.pruning.shape_rules import ShapeRules
from hgsp.scoring.groups import build_group_table
from hgsp.scoring.score import score_groups


@pytest.fixture
def plan(make):
    model = make("llama-8q4kv")
    geometry = geometry_of(model)
    table = build_group_table(score_groups(Decoder(model), "magnitude").by_layer, geometry)
    return select_groups(table, geometry, geometry.total_params // 5, ShapeRules(1, 8), provenance={"seed": 42})


def cells_of(plan):
    table = plan.table()
    return [list(column.cells) for column in table.columns]


def test_a_plan_prints_on_one_line(plan):
    of_all, of_decoder = (
        plan.removed_params / params for params in (plan.geometry.total_params, plan.geometry.decoder_params)
    )
    expected = (
        f"PrunePlan(3 layers, {plan.removed_params:,} parameters removed ({of_all:.2%} of all, {of_decoder:.2%} of the "
        "decoder layers), whole layers removed: none)"
    )
    assert repr(plan) == expected
    layers = (replace(plan.layers[0], kv_groups=(), mlp_channels=()), *plan.layers[1:])
    assert repr(PrunePlan(layers, 9000, 9000)).endswith("9,000 parameters removed, whole layers removed: 0)")


def test_the_table_has_the_kept_sizes_and_share_of_every_layer(plan):
    layer, kv_groups, channels, shares = cells_of(plan)
    geometry = plan.geometry
    assert layer == ["0", "1", "2"]
    assert kv_groups == [f"{len(keep.kv_groups)} of 4" for keep in plan.layers]
    assert channels == [f"{len(keep.mlp_channels)} of 96" for keep in plan.layers]
    dense = geometry.layer_params(geometry.shapes[0])
    assert shares == [f"{geometry.layer_params(keep.shape) / dense:.1%}" for keep in plan.layers]
    console = Console(width=120, file=io.StringIO())
    console.print(plan.table())
    assert kv_groups[0] in console.file.getvalue()


def test_html_shows_the_same_cells_as_the_table(plan):
    html = plan._repr_html_()
    assert html.startswith("<table>")
    assert repr(plan) in html
    rows = [row.split("</tr>")[0] for row in html.split("<tr>")[2:]]
    found = [[cell.split("</td>")[0] for cell in row.split("<td>")[1:]] for row in rows]
    assert found == [list(row) for row in zip(*cells_of(plan), strict=True)]


def test_a_plan_from_a_file_shows_what_it_knows(plan, tmp_path):
    plan.write_json(tmp_path / "plan.json")
    read = PrunePlan.read_json(tmp_path / "plan.json")
    assert read == plan
    assert read.geometry is None
    _, kv_groups, _, shares = cells_of(read)
    assert kv_groups == [str(len(keep.kv_groups)) for keep in plan.layers]
    assert set(shares) == {""}
    with pytest.raises(InputError, match="knows the dense model's geometry"):
        read.plot()


def test_the_plot_has_a_line_of_kept_shares_for_each_kind(plan):
    (axes,) = plan.plot().axes
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert lines == {
        "KV groups": [len(keep.kv_groups) / 4 for keep in plan.layers],
        "MLP channels": [len(keep.mlp_channels) / 96 for keep in plan.layers],
    }


def test_without_matplotlib_one_line_says_how_to_get_it(plan, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[plots\]'"):
        plan.plot()


def test_files_have_the_fields_they_always_had_in_their_order(plan, tmp_path):
    plan.write_json(tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text()
    content = json.loads(text)
    assert list(content) == ["layers", "budget_params", "removed_params", "provenance", "writer_bias"]
    assert list(content["layers"][0]) == ["kv_groups", "mlp_channels"]
    assert text == json.dumps(content)
    del content["writer_bias"]  # as files of the first versions
    (tmp_path / "old.json").write_text(json.dumps(content))
    assert PrunePlan.read_json(tmp_path / "old.json") == plan
