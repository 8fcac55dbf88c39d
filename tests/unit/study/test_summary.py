"""Tables and plots of many results: settings are not mixed, and nothing is dropped silently."""

import csv
import io
import itertools
import json
import sys

import pytest

from hgsp.cli import summarize
from hgsp.console.report_schema import TOKEN_PPL
from hgsp.study import plots, tables
from hgsp.study.collect import Quantity, collect

WIKITEXT = {"tokens": 2 * 63, "windows": 2, "seq_len": 64, "bos": False, "last_window": "scored", "dtype": "bfloat16"}
WIKITEXT |= {"split": "test", "sha256": "abcdef0123456789"}


def ppl(value, **changes):
    return {**WIKITEXT, "ppl": value, **changes}


def scoring(**changes):
    calibration = {"source": "c4, train, file.gz", "sequences": 128, "seq_len": 256}
    return {"temperature": 0.0, "seed": 42, "calibration": calibration, "calibration_loss": 3.1, **changes}


def report(**changes):
    return {
        "schema_version": 1,
        "base_model": "meta-llama/Meta-Llama-3-8B",
        "importance_method": "taylor",
        "asked_ratio": 0.2,
        "asked_ratio_of": "decoder",
        "reached_ratio": 0.1999,
        "reached_ratio_decoder": 0.2301,
        "params_before": 8_000_000_000,
        "params_after": 6_400_000_000,
        "weight_bytes_after": 12_800_000_000,
        "kv_cache_bytes_per_token_after": 122_880,
        "gqa_ratio": 4,
        "scoring": scoring(),
        "evaluation": {"before": {"wikitext2": ppl(6.0)}, "after": {"wikitext2": ppl(12.0)}},
        "timings_s": {"score": 100.0, "evaluate": 20.5},
        **changes,
    }


RECOVERY = {
    "method": "lora",
    "distilled_from": None,
    "steps": 9,
    "data": {"source": "alpaca-cleaned"},
    "timings_s": {"train": 50.0},
    "evaluation": {"before": {"wikitext2": ppl(12.0)}, "after": {"wikitext2": ppl(8.0)}},
}


def task(role, name="piqa", value=0.75, metric="acc", status="done", **more):
    metrics = [{"name": metric, "value": value}] if status == "done" else []
    return {
        "role": role,
        "task": name,
        "status": status,
        "metrics": metrics,
        "num_items": 100,
        "summary": "0-shot",
    } | more


def with_scores(table):
    """Add the columns of a group table that no test here looks at."""
    head, *rows = (line.rsplit(",", 1) for line in table.splitlines())
    return "\n".join([f"{head[0]},prior,score,{head[1]}", *(f"{start},1.0,0.5,{kept}" for start, kept in rows)]) + "\n"


@pytest.fixture
def write(tmp_path):
    """``write("MODEL/p20", report)`` writes a result; further keyword arguments are files."""

    def result(name, content, recovery=None, evaluation=None, table=None):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "pruning_analysis.json").write_text(content if isinstance(content, str) else json.dumps(content))
        if recovery is not None:
            (folder / "recovery_analysis.json").write_text(json.dumps(recovery))
        if evaluation is not None:
            (folder / "evaluation").mkdir()
            (folder / "evaluation" / "results.json").write_text(
                json.dumps({"schema_version": 1, "results": evaluation})
            )
        if table is not None:
            (folder / "global_group_table.csv").write_text(with_scores(table))
        return folder

    return result


def rows_of(results):
    return list(csv.DictReader(io.StringIO(tables.to_csv(results))))


def only(tmp_path):
    results, skipped = collect([tmp_path])
    assert not skipped
    return results


def test_every_number_of_a_report_is_in_the_csv_as_it_was(write, tmp_path):
    folder = write("LLaMA-3-8B/prune_20", report())
    assert rows_of(only(tmp_path)) == [
        {
            "folder": str(folder),
            "model": "Meta-Llama-3-8B",
            "gqa_ratio": "4.0",
            "importance_method": "taylor",
            "temperature": "0.0",
            "calibration": "c4, 128 x 256",
            "seed": "42",
            "asked_ratio": "0.2",
            "ratio_of": "decoder",
            "reached_ratio": "0.1999",
            "reached_ratio_decoder": "0.2301",
            "params_before": "8000000000",
            "params_after": "6400000000",
            "weight_bytes": "12800000000",
            "kv_bytes_per_token": "122880",
            "seconds": "120.5",
            "recovery": "",
            "recovery_seconds": "",
            "PPL wikitext2 (2 x 64) dense": "6.0",
            "PPL wikitext2 (2 x 64) pruned": "12.0",
        }
    ]


@pytest.mark.parametrize(
    ("described", "told"),
    [
        ({"texts": ["c4", "wikitext2"], "source": "as listed"}, "c4 + wikitext2, 128 x 256"),
        ({"source": "c4, train, file.gz + wikitext2, train, wiki.train.raw"}, "c4 + wikitext2, 128 x 256"),
        ({"texts": ["my, own.txt"], "source": "my, own.txt, whole file, own.txt"}, "my, own.txt, 128 x 256"),
    ],
)
def test_all_texts_of_a_calibration_are_in_the_csv(write, tmp_path, described, told):
    write("M/p20", report(scoring=scoring(calibration={**described, "sequences": 128, "seq_len": 256})))
    assert [row["calibration"] for row in rows_of(only(tmp_path))] == [told]


def test_markdown_and_latex_say_the_same_in_short(write, tmp_path):
    write("LLaMA-3-8B/prune_20", report())
    results = only(tmp_path)
    assert (
        "| Meta-Llama-3-8B | 4:1 | taylor, T=0 | 0.20 of decoder | 0.1999 | 0.2301 | 6.4 G | 12.8 GB | "
        "122,880 | 6.00 → 12.00 | 120 | "
        "LLaMA-3-8B/prune_20 |\n"
    ) in tables.to_markdown(results, [])
    latex = tables.to_latex(results)
    assert r"0.1999 & 0.2301 & 6.4 G & 12.8 GB & 122,880 & 6.00 $\to$ 12.00 & 120 & LLaMA-3-8B/prune\_20 \\" in latex
    assert latex.count("&") % latex.count(r" \\") == 0
    assert "recovery" not in latex.split("\n", 1)[1]


@pytest.mark.parametrize(
    ("changes", "heading"),
    [
        ({"seq_len": 128, "tokens": 2 * 127}, "PPL wikitext2 (2 x 128) pruned"),
        ({"windows": 3, "tokens": 3 * 63}, "PPL wikitext2 (3 x 64) pruned"),
        ({"tokens": 100}, "PPL wikitext2 (all x 64) pruned"),
        ({"bos": True, "tokens": 2 * 64}, "PPL wikitext2 (2 x 64 BOS) pruned"),
        ({"last_window": "dropped"}, "PPL wikitext2 (2 x 64 cut) pruned"),
        ({"sha256": "0123456789abcdef"}, "PPL wikitext2 (2 x 64) [test, 01234567, bfloat16] pruned"),
        ({"dtype": "float32"}, "PPL wikitext2 (2 x 64) [test, abcdef01, float32] pruned"),
    ],
)
def test_another_protocol_is_another_column(changes, heading, write, tmp_path):
    write("a/p20", report())
    write("b/p20", report(evaluation={"after": {"wikitext2": ppl(99.0, **changes)}}))
    first, second = sorted(rows_of(only(tmp_path)), key=lambda row: row["folder"])
    assert (first[heading], second[heading]) == ("", "99.0")
    assert [value for name, value in first.items() if name.endswith(" pruned") and value] == ["12.0"]


def test_a_text_read_to_its_end_is_one_protocol_whatever_the_tokenizer_makes_of_it(write, tmp_path):
    write("a/p20", report(evaluation={"after": {"wikitext2": ppl(9.0, windows=141, tokens=141 * 63 - 5)}}))
    write("b/p20", report(evaluation={"after": {"wikitext2": ppl(8.0, windows=163, tokens=163 * 63 - 9)}}))
    assert {row["PPL wikitext2 (all x 64) pruned"] for row in rows_of(only(tmp_path))} == {"9.0", "8.0"}


def test_a_result_without_evaluation_has_empty_cells(write, tmp_path):
    write("a/p20", report())
    write("b/p20", report(evaluation={}))
    row = next(row for row in rows_of(only(tmp_path)) if "/b/" in row["folder"])
    assert row["PPL wikitext2 (2 x 64) dense"] == row["PPL wikitext2 (2 x 64) pruned"] == ""


def test_a_recovered_folder_and_the_pruned_one_are_one_row(write, tmp_path):
    """Whether or not the pruned folder's report has a recovery section."""
    pruned = write("a/p20", report())
    write("a/p20_finetuned", report(recovery=RECOVERY), recovery=RECOVERY)
    (row,) = rows_of(only(tmp_path))
    assert row["folder"] == str(pruned)
    assert [row[f"PPL wikitext2 (2 x 64) {role}"] for role in ("dense", "pruned", "recovered")] == [
        "6.0",
        "12.0",
        "8.0",
    ]
    assert (row["recovery"], row["recovery_seconds"]) == ("LoRA, alpaca-cleaned, 9 steps", "50.0")
    (pruned / "pruning_analysis.json").write_text(json.dumps(report(recovery=RECOVERY)))
    assert rows_of(only(tmp_path)) == [row]
    assert "6.00 → 12.00 → 8.00" in tables.to_markdown(only(tmp_path), [])


def test_two_recoveries_are_two_rows(write, tmp_path):
    write("a/p20", report(recovery=RECOVERY))
    write("a/lora", report(recovery=RECOVERY), recovery=RECOVERY)
    distilled = {**RECOVERY, "method": "full", "distilled_from": "teacher"}
    write("a/distilled", report(recovery=distilled), recovery=distilled)
    rows = rows_of(only(tmp_path))
    assert sorted(row["recovery"] for row in rows) == [
        "LoRA, alpaca-cleaned, 9 steps",
        "all parameters, distilled, alpaca-cleaned, 9 steps",
    ]


def test_accuracies_of_both_folders_are_listed_under_their_role(write, tmp_path):
    """In the recovered folder's own file, "pruned" is the recovered model."""
    both = [task("dense", value=0.8), task("pruned", value=0.6), task("pruned", "arc_easy", status="failed")]
    write("a/p20", report(), evaluation=both)
    write("a/new", report(recovery=RECOVERY), recovery=RECOVERY, evaluation=[task("pruned", value=0.7)])
    (row,) = rows_of(only(tmp_path))
    assert [row[f"piqa acc (100 items) {role}"] for role in ("dense", "pruned", "recovered")] == ["0.8", "0.6", "0.7"]
    assert not [name for name in row if "arc_easy" in name]
    assert "0.800 → 0.600 → 0.700" in tables.to_markdown(only(tmp_path), [])


def test_perplexity_from_either_recipe_by_the_same_protocol_is_one_column(write, tmp_path):
    again = task("dense", "wikitext2", 6.5, TOKEN_PPL, protocol=ppl(6.5))
    other = task("pruned", "c4", 30.0, TOKEN_PPL, protocol=ppl(30.0))
    write("a/p20", report(), evaluation=[again, other])
    (row,) = rows_of(only(tmp_path))
    assert row["PPL wikitext2 (2 x 64) dense"] == "6.0"  # from the pruning report
    assert row["PPL c4 (2 x 64) pruned"] == "30.0"
    assert "- → 30.00" in tables.to_markdown(only(tmp_path), [])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{ not json", "Expecting property name"),
        ("[]", "must be an object"),
        (report(schema_version=2), "schema_version must be 1, not 2"),
        ({key: value for key, value in report().items() if key != "gqa_ratio"}, "'gqa_ratio'"),
        (report(evaluation={"after": {"wikitext2": {"ppl": 3.0}}}), "'tokens'"),
    ],
)
def test_a_broken_report_is_listed_with_the_reason(content, reason, write, tmp_path):
    write("a/p20", report())
    broken = write("b/p20", content)
    results, skipped = collect([tmp_path])
    assert len(results) == 1
    (item,) = skipped
    assert item.folder == broken
    assert reason in item.reason
    assert f"- `{broken}`: {item.reason}" in tables.to_markdown(results, skipped)


def test_unfinished_folders_are_listed_and_not_read(write, tmp_path):
    write("a/.p20-xyz.partial", report())
    (tmp_path / "a" / "p20_finetuned.training" / "p").mkdir(parents=True)
    (tmp_path / "a" / "p20_finetuned.training" / "p" / "pruned_model.bin").touch()
    (tmp_path / "a" / "p30").mkdir()
    (tmp_path / "a" / "p30" / "prune_plan.json").touch()
    results, skipped = collect([tmp_path])
    assert results == []
    assert {item.folder.name: item.reason.partition(":")[0] for item in skipped} == {
        ".p20-xyz.partial": "unfinished",
        "p20_finetuned.training": "unfinished",
        "p30": "no pruning_analysis.json",
    }


def test_a_broken_results_json_loses_only_its_accuracies(write, tmp_path):
    folder = write("a/p20", report(), evaluation=[])
    (folder / "evaluation" / "results.json").write_text("{")
    results, skipped = collect([tmp_path])
    assert rows_of(results)[0]["PPL wikitext2 (2 x 64) dense"] == "6.0"
    assert [item.folder for item in skipped] == [folder / "evaluation"]


def test_latex_is_escaped():
    assert tables.escape_latex("a_b & 50 % → #{1}~^\\") == (
        r"a\_b \& 50 \% $\to$ \#\{1\}\textasciitilde{}\textasciicircum{}\textbackslash{}"
    )


def test_the_command_writes_tables_and_plots_and_lists_skipped_folders(write, tmp_path, capsys):
    write("a/p20", report(), table="layer,kind,kept\n0,attention,1\n0,attention,0\n0,mlp,1\n")
    write("b/p20", "{")
    assert summarize.main([str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("summary.csv", "summary.md", "summary.tex", "summary_ppl.png", "summary_layers.png"),
        *("report.html", "report.md"),
    }
    shown = capsys.readouterr().out
    assert "6.00 → 12.00" in shown
    assert f"skipped: {tmp_path / 'b' / 'p20'}: not readable (InputError: expected a pruning_analysis.json" in shown


def test_without_matplotlib_the_tables_are_written_and_one_line_says_how_to_get_plots(
    write, tmp_path, monkeypatch, capsys
):
    write("a/p20", report())
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(summarize, "find_spec", lambda name: None)
    assert summarize.main([str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        *("a", "summary.csv", "summary.md", "summary.tex", "report.html", "report.md")
    }
    assert "pip install -e '.[plots]'" in capsys.readouterr().out


def test_nothing_to_summarize_is_refused_with_the_reasons(tmp_path, write, capsys):
    (tmp_path / "empty").mkdir()
    assert summarize.main([str(tmp_path / "empty")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert summarize.main([str(tmp_path / "nowhere")]) == 2
    write("a/p20", "{")
    assert summarize.main([str(tmp_path)]) == 2
    assert "Expecting property name" in capsys.readouterr().err
    assert not list(tmp_path.glob("summary*"))


def test_lines_of_the_plot_join_ratios_and_keep_settings_apart(write, tmp_path):
    write("a/p20", report())
    write("a/p30", report(asked_ratio=0.3, params_after=5_600_000_000))
    write("b/p20", report(base_model="Qwen/Qwen2.5-7B", gqa_ratio=7))
    write("c/p20", report(base_model="Qwen/Qwen2.5-7B", gqa_ratio=7, scoring=scoring(temperature=1.0)))
    lines = plots.lines_of(only(tmp_path))
    assert {label: [result.asked_ratio for result in line] for label, line in lines.items()} == {
        "Meta-Llama-3-8B (4:1)": [0.3, 0.2],
        "Qwen2.5-7B (7:1, taylor, T=0)": [0.2],
        "Qwen2.5-7B (7:1, taylor, T=1)": [0.2],
    }


def test_lines_that_differ_in_the_seed_alone_are_told_apart_by_their_folder(write, tmp_path):
    write("first/p20", report())
    write("first/p30", report(asked_ratio=0.3, scoring=scoring(calibration_loss=3.2)))
    write("second/p20", report(scoring=scoring(seed=7, calibration=None)))
    write("second/p20_too", report(scoring=scoring(seed=8)))
    assert {label: len(line) for label, line in plots.lines_of(only(tmp_path)).items()} == {
        "Meta-Llama-3-8B (4:1, first)": 2,
        "Meta-Llama-3-8B (4:1, second)": 1,
        "Meta-Llama-3-8B (4:1, second/p20_too)": 1,
    }


def test_the_plot_shows_ratios_to_the_dense_model_of_the_same_protocol(write, tmp_path):
    write("a/p20", report())
    write("a/p20_finetuned", report(recovery=RECOVERY), recovery=RECOVERY)
    figure = plots.plot_perplexity(only(tmp_path))
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    assert {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()} == {
        "Meta-Llama-3-8B (4:1)": [[80, 2], [100, 1]],
        "Meta-Llama-3-8B (4:1), recovered": [[80, 8 / 6]],
    }


@pytest.mark.parametrize("num_models", [1, 2, 9])
def test_legends_of_long_names_lie_inside_the_picture_and_cover_nothing(num_models, write, tmp_path):
    table = "layer,kind,kept\n0,attention,1\n0,mlp,1\n"
    for number in range(num_models):
        model = f"{number}-Instruct with a rather long name of its own, longer than a panel is wide"
        write(f"a{number}/p20", report(base_model=model), table=table)
        recovered = report(base_model=model, recovery=RECOVERY)
        write(f"a{number}/p20_finetuned", recovered, recovery=RECOVERY)
    for draw in (plots.plot_perplexity, plots.plot_kept_groups):
        figure = draw(only(tmp_path))
        figure.savefig(io.BytesIO())
        (legend,) = figure.legends
        place = legend.get_window_extent()
        assert 0 <= place.x0 < place.x1 <= figure.bbox.x1
        assert 0 <= place.y0 < place.y1
        panels = [axes.get_tightbbox() for axes in figure.axes if axes.get_visible()]
        assert place.y1 <= min(panel.y0 for panel in panels)
        assert all(panel.height > 60 for panel in panels)
        assert not any(one.overlaps(other) for one, other in itertools.combinations(panels, 2))


def test_there_is_no_plot_without_numbers(write, tmp_path):
    write("a/p20", report(evaluation={"after": {"wikitext2": ppl(9.0)}}))
    assert plots.plot_perplexity(only(tmp_path)) is None
    assert plots.plot_kept_groups(only(tmp_path)) is None


def test_kept_fractions_come_from_the_group_table(write, tmp_path):
    table = "layer,kind,kept\n0,attention,1\n0,attention,0\n0,mlp,1\n1,attention,1\n1,attention,1\n1,mlp,0\n1,mlp,0\n"
    folder = write("a/p20", report(), table=table)
    assert plots.kept_fractions(folder) == {"attention": [0.5, 1.0], "mlp": [1.0, 0.0]}
    attention, mlp = plots.plot_kept_groups(only(tmp_path)).axes
    assert attention.get_lines()[0].get_ydata().tolist() == [50, 100]
    assert mlp.get_lines()[0].get_ydata().tolist() == [100, 0]


def test_headings_say_more_only_where_they_must():
    same, other = Quantity(TOKEN_PPL, "c4", "2 x 64", "test, 1"), Quantity(TOKEN_PPL, "c4", "2 x 64", "test, 2")
    assert tables.headings([same]) == {same: "PPL c4 (2 x 64)"}
    assert tables.headings([same, other])[other] == "PPL c4 (2 x 64) [test, 2]"


def labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


@pytest.mark.parametrize("after", [6.3, 7.0, 12.0, 6e9])
def test_the_ratio_axis_has_several_labels_whatever_its_range(write, tmp_path, after):
    measured = {"before": {"wikitext2": ppl(6.0)}, "after": {"wikitext2": ppl(after)}}
    write("LLaMA/p20", report(evaluation=measured))
    figure = plots.plot_perplexity(only(tmp_path))
    figure.draw_without_rendering()
    assert len(labels(figure.axes[0].yaxis)) >= 2


def test_layers_are_whole_numbers(write, tmp_path):
    rows = [f"{layer},{kind},1" for layer in range(3) for kind in ("attention", "mlp")]
    write("LLaMA/p20", report(), table="\n".join(["layer,kind,kept", *rows]) + "\n")
    figure = plots.plot_kept_groups(only(tmp_path))
    figure.draw_without_rendering()
    assert all(tick == int(tick) for tick in figure.axes[1].get_xticks())
