"""``hgsp families``: one line for every family, the same in JSON and in the documentation."""

import json

from conftest import REPOSITORY
from hgsp.cli.families import main
from hgsp.models.families import FAMILIES


def test_every_family_has_a_line(capsys):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    table = lines[: lines.index("")]
    assert [line.split()[0] for line in table if line[:1].strip()] == ["model_type", *FAMILIES]
    assert len(table) < 1.5 * len(FAMILIES)


def test_the_table_says_what_a_family_has_no_place_for(capsys):
    assert main(["--json"]) == 0
    found = {row["model_type"]: row for row in json.loads(capsys.readouterr().out)}
    assert found["llama"]["exports"] == "gguf, decilm, stock, mlx"
    assert found["gemma3_text"]["exports"] == "stock"
    assert found["olmo2"]["removes"] == "channels"
    page = (REPOSITORY / "docs" / "ADDING_A_FAMILY.md").read_text()
    assert all(f"| `{name}` | {row['models']} |" in page for name, row in found.items())
