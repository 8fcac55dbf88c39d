"""Files of latency tables: whole tables are read, and each part that does not fit the others is named."""

import copy
import json

import pytest

from hgsp.costs.latency_file import read_latency_file
from hgsp.errors import InputError

ENTRY = {
    **{"phase": "decode", "batch_size": 1, "context_length": 16, "rest": 0.1, "spread": 0.0},
    **{"attention": [0.1, 0.2], "mlp": {"1": [0.1, 0.2], "8": [0.1]}},
}
TABLE = {
    **{"schema_version": 1, "model": "m", "hidden_size": 32, "head_dim": 8, "queries_per_kv": 2, "clock": "cpu"},
    **{"device_name": "a CPU", "dtype": "float32", "kv_groups": [1, 4], "mlp_widths": {"1": [1, 15], "8": [8]}},
    **{"timings": [ENTRY], "environment": {}},
}


def other(changes):
    table = copy.deepcopy(TABLE)
    for path, value in changes.items():
        *parents, last = path.split("/")
        place = table
        for parent in parents:
            place = place[int(parent) if isinstance(place, list) else parent]
        place[int(last) if isinstance(place, list) else last] = value
    return table


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"kv_groups": []}, "kv_groups"),
        ({"kv_groups": [4, 1]}, "kv_groups"),
        ({"kv_groups": [1, 1]}, "kv_groups"),
        ({"kv_groups": [1, 4, 8]}, r"timings\[0\]"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"clock": "sun"}, "clock"),
        ({"mlp_widths": {}}, "mlp_widths"),
        ({"mlp_widths/8": [16, 8]}, r"mlp_widths\.8"),
        ({"mlp_widths": {"0": [1, 15], "8": [8]}}, "mlp_widths"),
        ({"timings": []}, "timings"),
        ({"timings": [ENTRY, ENTRY]}, "timings"),
        ({"timings": [ENTRY, {**ENTRY, "batch_size": 4}, {**ENTRY, "context_length": 64}]}, "timings"),
        ({"timings/0/rest": -1}, r"timings\[0\]\.rest"),
        ({"timings/0/attention": [1e300, 0.1]}, r"timings\[0\]\.attention\[0\]"),
        ({"timings/0/attention/1": "0.1"}, r"timings\[0\]\.attention\[1\]"),
        ({"timings/0/mlp/8": []}, r"timings\[0\]"),
        ({"timings/0/phase": "training"}, r"timings\[0\]\.phase"),
    ],
)
def test_a_table_whose_parts_do_not_fit_is_refused(tmp_path, changes, named):
    path = tmp_path / "table.json"
    path.write_text(json.dumps(TABLE))
    assert read_latency_file(path).kv_groups == (1, 4)
    path.write_text(json.dumps(other(changes)))
    with pytest.raises(InputError, match=rf"table\.json.*{named}.*hgsp profile"):
        read_latency_file(path)
