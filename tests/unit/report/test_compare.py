"""Several results on one page: each by a name of its own, only equal protocols in one panel."""

import re

import pytest

import reports
from hgsp.report import compare, page
from hgsp.report.sources import read_sources


@pytest.fixture
def results(tmp_path):
    """Two pruned results of one name, and a recovered one."""
    recovery = reports.recovery()
    changed = {"before": {"c4": reports.ppl(10.0)}, "after": {"c4": reports.ppl(30.0)}}
    other = {"before": {"c4": reports.ppl(9.0, seq_len=128)}, "after": {"c4": reports.ppl(11.0, seq_len=128)}}
    write = reports.write_files
    return [
        write(made(tmp_path, "a/p20"), pruning=reports.pruning(verdict={"name": "usable", "reason": "it is"})),
        write(made(tmp_path, "b/p20"), pruning=reports.pruning(evaluation=changed), evaluation=reports.evaluation()),
        write(made(tmp_path, "b/p30"), table=False, pruning=reports.pruning(evaluation=other)),
        write(
            made(tmp_path, "b/p20_finetuned"),
            table=False,
            losses=True,
            pruning=reports.pruning(recovery=recovery),
            recovery=recovery,
        ),
    ]


def made(tmp_path, name):
    (tmp_path / name).mkdir(parents=True)
    return tmp_path / name


def part(found, title, kind):
    section = next(section for section in found.sections if section.title == title)
    return next(part for part in section.parts if part.kind == kind)


def test_every_run_has_its_row_and_equal_protocols_share_a_panel(results):
    found = compare.comparison_of([read_sources(folder) for folder in results])
    assert found.title == "4 results compared"
    assert found.left_out == []
    rows = part(found, "Runs", "table").rows
    assert [row[0] for row in rows] == ["a/p20", "b/p20", "b/p30", "b/p20_finetuned"]
    assert rows[0][-1] == "usable"
    assert rows[3][2] == "taylor, recovered"
    table = part(found, "Perplexity", "figure").data
    panels = {}
    for quantity, run, *values in table.rows:
        panels.setdefault(quantity, []).append((run, *values))
    assert [[run for run, *_ in panel] for panel in panels.values()] == [
        ["a/p20", "b/p20", "b/p20_finetuned"],
        ["b/p30"],
    ]
    assert ("b/p20_finetuned", "10.00 ± 0.50", "15.00 ± 0.75", "12.00 ± 0.60") in next(iter(panels.values()))
    assert part(found, "Layers", "figure").data.rows[0] == ("KV groups kept", "a/p20", "0.0 %", "62.5 %", "100.0 %")
    assert part(found, "Training", "figure").data.rows == [("b/p20_finetuned", "2.5", "2")]


def test_what_no_run_has_is_left_out(tmp_path):
    folder = reports.write_files(tmp_path, table=False, pruning=reports.pruning(evaluation={}))
    found = compare.comparison_of([read_sources(folder)] * 2)
    assert found.left_out == [
        "Perplexity: no perplexity was measured.",
        "Tasks: no task was measured; hgsp evaluate --tasks adds them.",
        "Training: no run has a loss curve.",
    ]
    assert len(part(found, "Runs", "table").head) == 9  # no verdicts, no column


def test_results_that_cannot_be_read_are_named_and_a_result_keeps_its_own_page(results, tmp_path):
    broken = made(tmp_path, "broken")
    assert compare.write_comparison([*results, broken], tmp_path) == ("report.html", "report.md")
    document = (tmp_path / "report.html").read_text()
    assert "skipped: expected a result with" in document
    assert page.MARK in document
    assert len(re.findall("<svg", document)) == 4
    assert compare.write_comparison(results, results[0]) == ()
    assert not (results[0] / "report.html").exists()
    (tmp_path / "report.html").write_text("my own page")
    assert compare.write_comparison(results, tmp_path) == ()
    assert (tmp_path / "report.html").read_text() == "my own page"
