"""Several results on one page: each by a name of its own, only equal protocols in one panel."""

import re

import numpy as np
import pytest

import reports
from hgsp.report import compare, page
from hgsp.report.differences import differences_table
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


def answered(role, name, metrics, request=None):
    """A result whose metrics are name -> items that are correct."""
    entries = [
        {"name": metric, "value": items.count("1") / len(items), "stderr": 0.1, "correct": items}
        for metric, items in metrics.items()
    ]
    task = reports.task(role, name) | {"metrics": entries, "num_items": 4, "request": request or {"limit": None}}
    return task


def compared(tmp_path, *results):
    runs = {}
    for number, items in enumerate(results):
        folder = made(tmp_path, f"run{number}")
        reports.write_files(folder, table=False, evaluation=reports.evaluation(results=list(items)))
        runs[f"run{number}"] = read_sources(folder)
    return differences_table(runs)


def test_accuracies_of_runs_are_compared_item_by_item(tmp_path):
    """With acc_norm where a task has it, and the recovered model where there is one; the dense one counts nowhere."""
    first = [
        answered("dense", "piqa", {"acc": "0000"}),
        answered("pruned", "piqa", {"acc": "0000", "acc_norm": "1100"}),
        answered("pruned", "boolq", {"acc": "1000"}),
        answered("pruned", "lambada", {"acc": "0000"}),
    ]
    second = [
        answered("pruned", "piqa", {"acc_norm": "0000"}),
        answered("recovered", "piqa", {"acc_norm": "1010", "acc": "1111"}),
        answered("recovered", "boolq", {"acc": "1100"}),
        answered("recovered", "lambada", {"acc": "1111"}),
    ]
    table = compared(tmp_path, first, second)
    errors = [float(np.std(differences, ddof=1)) / 2 for differences in ([0, -1, 1, 0], [0, 1, 0, 0])]
    assert table.head == ("task", "run", "minus run0, points")
    assert table.rows == [
        ("piqa", "run1", f"+0.0 ± {100 * errors[0]:.1f}"),
        ("boolq", "run1", f"+25.0 ± {100 * errors[1]:.1f}"),
        ("lambada", "run1", "+100.0 ± 0.0"),
        ("mean of 2", "run1", f"+12.5 ± {100 * np.hypot(*errors) / 2:.1f}"),
    ]


def test_only_the_same_items_are_compared(tmp_path):
    """Not by another request, by another metric, or of files that hold no items."""
    first = [answered("pruned", "piqa", {"acc": "1100"}), answered("pruned", "boolq", {"acc": "1100"})]
    limited = answered("pruned", "piqa", {"acc": "1100"}, {"limit": 4})
    normed = answered("pruned", "boolq", {"acc_norm": "1100"})
    assert compared(tmp_path, first, [limited, normed], [reports.task("pruned")]) is None
    assert differences_table({}) is None


def test_the_page_shows_the_differences(tmp_path):
    for number, items in enumerate(("1100", "1000")):
        content = reports.evaluation(results=[answered("pruned", "piqa", {"acc": items})])
        reports.write_files(made(tmp_path, f"run{number}"), table=False, evaluation=content)
    compare.write_comparison([tmp_path / "run0", tmp_path / "run1"], tmp_path)
    assert "| piqa | run1 | -25.0 ± 25.0 |" in (tmp_path / "report.md").read_text()
