"""A page holds every section that its folder has files for, a sentence for every other, and no foreign markup."""

import html
import json
import re
import xml.dom.minidom

import pytest

import reports
from hgsp.errors import InputError
from hgsp.report import overview, page
from hgsp.report.sources import read_sources

HOSTILE = "<script>alert('x')</script><img src=http://evil.example/x.png>\"'&`*_|[a](http://evil.example)"


@pytest.fixture
def complete(tmp_path):
    """A recovered result with every file."""
    recovery = reports.recovery()
    content = reports.pruning(recovery=recovery)
    return reports.write_files(
        tmp_path, losses=True, pruning=content, recovery=recovery, evaluation=reports.evaluation()
    )


def page_of(folder):
    return page.page_of(read_sources(folder))


def titles_of(folder):
    return [section.title for section in page_of(folder).sections]


def text_of(folder):
    """The visible text of the HTML page."""
    document = re.sub(r"<style>.*?</style>", "", page.as_html(page_of(folder)), flags=re.DOTALL)
    return html.unescape(" ".join(re.sub(r"<[^>]+>", " ", document).split()))


def test_a_complete_result_has_every_section(complete):
    found = page_of(complete)
    assert [section.title for section in found.sections] == list(page.SECTIONS)
    assert found.left_out == []
    assert found.title == "Modest-1B: 20.0 % of all parameters removed, recovered"
    assert [card.value for card in found.cards] == [
        "1 G → 800.4 M",
        "2 GB → 1.601 GB",
        "65.54 kB → 40.96 kB",
        "10.00 → 15.00 → 12.00",
    ]


@pytest.mark.parametrize(
    "expected",
    [
        "--pruning_ratio 0.2",
        "1,000,000,000 800,400,000",
        "10.00 ± 0.50 15.00 ± 0.75 12.00 ± 0.60",
        "0.7500 ± 0.0100",
        "Failed: boolq (recovered): no such file",
        "2 of 2 8 of 8 100.0 %",
        "layer 1, KV group 0: removed",
        "layer 3: 0 of 8 MLP channels kept",
        "KL(dense || pruned) fell from 0.5000 to 0.3000",
        "Held-out loss: 2.5000 before training, 2.0000 in the kept state.",
        "×1.25",  # 20 ms / 16 ms
        "Why is the sky blue? (as a chat)",
        "It is salty.",
        "calibrated and evaluated on the same corpus",
    ],
)
def test_numbers_and_words_are_on_both_pages(complete, expected):
    assert expected in text_of(complete)
    if "layer " not in expected:  # notes of cells are the HTML page's
        document = page.as_markdown(page_of(complete)).replace("\\", "").replace("**", "")
        cells = " ".join(document.replace("|", " ").split())
        assert " ".join(expected.replace("|", " ").split()) in cells


def test_charts_are_well_formed_and_inside_their_frames(complete):
    document = page.as_html(page_of(complete))
    charts = re.findall(r"<svg.*?</svg>", document, re.DOTALL)
    assert len(charts) == 11
    for chart in charts:
        root = xml.dom.minidom.parseString(chart).documentElement
        _, _, width, height = map(float, root.getAttribute("viewBox").split())
        assert root.getAttribute("aria-label")
        for box in root.getElementsByTagName("rect"):
            x, y, w, h = (float(box.getAttribute(name)) for name in ("x", "y", "width", "height"))
            assert min(x, y, w, h) >= 0
            assert x + w <= width
            assert y + h <= height


def test_the_page_loads_nothing_and_holds_no_script(complete):
    document = page.as_html(page_of(complete))
    assert "<script" not in document
    assert not re.findall(r"(?:src|href)=\"(?!#|data:,)[^\"]*", document)
    assert "url(" not in document
    assert "@import" not in document
    assert "default-src 'none'" in document
    assert len(document) < 200_000


def test_hostile_names_and_samples_inject_nothing(tmp_path):
    samples = {"before": HOSTILE, "after": "```\n" + HOSTILE, "prompts": []}
    evaluated = {stage: {HOSTILE: reports.ppl(value)} for stage, value in (("before", 1.0), ("after", 2.0))}
    content = reports.pruning(
        base_model=HOSTILE,
        command=HOSTILE,
        samples=samples,
        warnings=[HOSTILE],
        verdict={"name": HOSTILE, "reason": HOSTILE},
        evaluation=evaluated,
    )
    folder = reports.write_files(tmp_path, pruning=content)
    found = page_of(folder)
    document = page.as_html(found)
    assert "<script" not in document
    assert "<img" not in document
    assert html.escape("<script>alert(") in document
    # outside code blocks, which show characters as they are, nothing of it is markup
    markdown = page.as_markdown(found)
    outside = re.sub(r"^(`{3,})text\n.*?^\1$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    assert not re.search(r"(?<!\\)<", outside)
    assert not re.search(r"(?<!\\)\]\(", outside)
    assert "````text\n```\n<script>" in markdown


def test_missing_files_leave_out_their_sections_with_a_sentence(tmp_path):
    content = reports.pruning(
        search=None, whole_blocks=None, reconstruction=None, speed=None, samples={}, evaluation={}
    )
    folder = reports.write_files(tmp_path, table=False, pruning=content)
    found = page_of(folder)
    assert [section.title for section in found.sections] == [
        *("How it was made", "Size", "Layers", "Settings, time and memory")
    ]
    assert len(found.left_out) == len(page.SECTIONS) - len(found.sections)
    assert "Scores: this folder has no global_group_table.csv." in found.left_out
    assert "Budget search: no budget search was run (--search)." in found.left_out


def test_emptied_blocks_without_a_divergence_are_not_drawn(tmp_path):
    """Found by fuzzing."""
    nothing = {"emptied": [], "kl_by_emptied_blocks": {}}
    found = page_of(reports.write_files(tmp_path, pruning=reports.pruning(search=None, whole_blocks=nothing)))
    assert "Budget search: no budget search was run (--search)." in found.left_out


def test_an_older_result_lacks_what_it_lacks(tmp_path):
    content = reports.pruning()
    for entry in content["layers"]:
        del entry["num_kv_groups"], entry["num_mlp_channels"]
    del content["kv_cache_bytes_per_token_before"], content["search"]["kl_before"]
    folder = reports.write_files(tmp_path, pruning=content)
    found = page_of(folder)
    assert "Layers" in [section.title for section in found.sections]  # their sizes are those of the table
    assert "Size: this result has no kv_cache_bytes_per_token_before." in found.left_out
    assert "Budget search: this result has no kl_before." in found.left_out
    (folder / "global_group_table.csv").unlink()
    assert "Layers: this folder has no global_group_table.csv." in page_of(folder).left_out


def test_a_model_with_many_heads_has_bars_for_its_layers(tmp_path):
    content = reports.pruning()
    for entry in content["layers"]:
        entry |= {"num_kv_groups": 32, "kept_kv_groups": list(range(20))}
    assert "layer 0: 20 of 32 KV groups kept (62.5 %)" in text_of(reports.write_files(tmp_path, pruning=content))


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, None),
        ({"verdict": {"name": "needs recovery", "reason": "PPL x2"}}, "needs recovery: PPL x2"),
        ({"collapsed": True}, "collapsed: perplexity grew so much that the model is useless as it is"),
    ],
)
def test_the_verdict_is_shown_where_there_is_one(tmp_path, changes, verdict):
    sources = read_sources(reports.write_files(tmp_path, pruning=reports.pruning(**changes)))
    assert overview.verdict_of(sources) == verdict
    assert ("Verdict" in page.as_html(page.page_of(sources))) is (verdict is not None)


def test_the_verdict_is_that_of_the_last_step(tmp_path):
    recovery = reports.recovery(verdict={"name": "usable as it is", "reason": "r"})
    content = reports.pruning(verdict={"name": "needs recovery", "reason": "r"}, recovery=recovery)
    assert overview.verdict_of(read_sources(reports.write_files(tmp_path, pruning=content))) == "usable as it is: r"


def test_the_scores_show_the_threshold_and_where_all_are_equal_nothing(tmp_path):
    folder = reports.write_files(tmp_path, pruning=reports.pruning())
    assert 'class="rule"' in page.as_html(page_of(folder))
    table = folder / "global_group_table.csv"
    head, *lines = table.read_text().splitlines()
    equal = [",".join([*line.split(",")[:-2], "1.0", line.split(",")[-1]]) for line in lines]
    table.write_text("\n".join([head, *equal]) + "\n")
    assert "Scores: all scores are equal, or none is positive." in page_of(folder).left_out


def test_an_evaluation_by_itself_has_a_page(tmp_path):
    reports.write_files(tmp_path, table=False, evaluation=reports.evaluation())
    page.write_evaluation_report(tmp_path / "evaluation")
    assert "Modest-1B: evaluation" in (tmp_path / "evaluation" / "report.html").read_text()
    assert not (tmp_path / "report.html").exists()
    found = page_of(tmp_path / "evaluation")
    assert [section.title for section in found.sections] == [
        *("How it was made", "Tasks", "Speed and memory", "Settings, time and memory")
    ]


def test_an_evaluation_of_a_result_renews_the_page_of_the_result(tmp_path, monkeypatch):
    folder = reports.write_files(tmp_path, pruning=reports.pruning(), evaluation=reports.evaluation())
    monkeypatch.setenv("RANK", "1")
    page.write_evaluation_report(folder / "evaluation")
    assert not (folder / "report.html").exists()  # the first process writes
    monkeypatch.setenv("RANK", "0")
    page.write_evaluation_report(folder / "evaluation")
    assert "Accuracy by task" in (folder / "report.html").read_text()


def test_files_that_cannot_be_read_or_written_are_a_warning_of_a_run(tmp_path, caplog):
    page.write_report(reports.write_files(tmp_path, table=False, pruning={"schema_version": 9}))
    assert "no report.html" in caplog.text
    assert not (tmp_path / "report.html").exists()
    caplog.clear()
    reports.write_files(tmp_path, pruning=reports.pruning())
    (tmp_path / "report.html").mkdir()
    page.write_report(tmp_path)
    assert "no report.html" in caplog.text
    assert [path.name for path in tmp_path.glob(".*")] == []


@pytest.mark.parametrize(
    "content", ["{", "[]", json.dumps({"schema_version": 2}), json.dumps({"schema_version": 1, "base_model": "m"})]
)
def test_a_report_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "pruning_analysis.json").write_text(content)
    with pytest.raises(InputError, match=r"pruning_analysis\.json"):
        read_sources(tmp_path)


def test_a_command_is_broken_before_its_flags_and_stays_the_same():
    command = f"run_global_pruning.py --base_model {'m' * 40} --output_name 'a --b' {' '.join(['--flag 1'] * 12)}"
    lines = overview.as_lines(command).split(" \\\n")
    assert len(lines) > 2
    assert all(line.startswith("  --") for line in lines[1:])
    assert max(map(len, lines)) <= 90
