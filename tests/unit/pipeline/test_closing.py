"""The per-layer summary of a result."""

import pytest

from conftest import make_tiny
from hgsp.console.tables import format_bytes, format_number, format_seconds
from hgsp.models.geometry import LayerShape, geometry_of
from hgsp.pipeline.closing import layer_summary


@pytest.mark.parametrize(("num_layers", "width"), [(1, 8), (28, 18_944), (80, 28_672), (126, 53_248)])
def test_layers_read_down_columns_that_fit_a_terminal(num_layers, width):
    after = [LayerShape(index % 9, width - 64 * index) for index in range(num_layers)]
    heading, *lines = layer_summary(geometry_of(make_tiny("llama-8q4kv")), after).splitlines()
    assert heading == "kept in each layer: KV groups of 4, MLP channels of 96"
    assert max(map(len, lines)) <= 80
    cells = [cell.split() for line in lines for cell in line.replace(":", "").split("   ") if cell.strip()]
    assert sorted(map(tuple, cells)) == sorted(
        (f"{index}", f"{shape.num_kv_groups}", f"{shape.mlp_width}") for index, shape in enumerate(after)
    )
    assert [line.split(":")[0].strip() for line in lines] == [f"{index}" for index in range(len(lines))]


def test_formats_of_numbers():
    assert (format_number(37.812), format_number(7322621015471899648.0), format_number(29.2, 1)) == (
        "37.81",
        "7.323e+18",
        "29.2",
    )
    assert (format_bytes(512), format_bytes(15_231_233_024), format_bytes(4e12)) == ("512 B", "15.2 GB", "4 TB")
    assert (format_seconds(0.2), format_seconds(89), format_seconds(200), format_seconds(9000)) == (
        "1 s",
        "89 s",
        "3 min",
        "2.5 h",
    )
