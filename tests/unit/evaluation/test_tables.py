"""Tables and verdicts: like is compared with like, averages name their parts, and a collapse is reported loudly."""

from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from hgsp.console.report_schema import DENSE, DONE, FAILED, PRUNED, RECOVERED
from hgsp.evaluation.collapse import has_collapsed
from hgsp.evaluation.metrics.efficiency import Static, Timing, Workload
from hgsp.evaluation.metrics.zeroshot import ZERO_SHOT, averages
from hgsp.evaluation.reporting import busy_warnings, harm_warnings, perplexity_pairs, same_corpus_warnings
from hgsp.evaluation.results import Metric, Results, TaskResult
from hgsp.evaluation.side_by_side import static_metrics, timing_metrics
from hgsp.evaluation.tables import (
    comparison,
    comparisons_as_dicts,
    format_metric,
    markdown,
    terminal_table,
    zero_shot_averages,
)

PROTOCOL = {
    "sha256": "abc",
    "seq_len": 128,
    "windows": 2,
    "tokens": 254,
    "bos": False,
    "dtype": "bfloat16",
    "split": "wikitext-2-raw-v1/test",
    "description": "token PPL on wikitext2, 2 windows of 128 tokens",
}


def ppl(role, value, **request):
    metrics = (Metric("token_ppl", value, stderr=0.25, higher_is_better=False),)
    return TaskResult(role, "wikitext2", DONE, role, request, metrics, 2, "2 x 128 tokens", PROTOCOL)


def accuracy(role, task, acc, acc_norm=None, **request):
    values = {"acc": acc} if acc_norm is None else {"acc": acc, "acc_norm": acc_norm}
    metrics = tuple(Metric(name, value, "", 0.01, True) for name, value in values.items())
    return TaskResult(role, task, DONE, role, request, metrics, 100, "100 items", {"description": f"{task} v1"})


def stored(tmp_path, *items):
    results = Results(tmp_path / "results.json", {role: {"path": f"x/{role}", "identity": role} for role in "ab"})
    for item in items:
        results.add(item)
    return results


def test_differences_and_ratios_are_to_the_dense_model(tmp_path):
    results = stored(tmp_path, ppl(DENSE, 10.0), ppl(PRUNED, 25.0), ppl(RECOVERED, 12.0))
    (row,) = comparison(results)
    assert (row.ratio(PRUNED), row.difference(PRUNED)) == (2.5, 15.0)
    assert row.ratio(RECOVERED) == pytest.approx(1.2)
    assert [item["ratio"] for item in comparisons_as_dicts(results)] == [2.5, pytest.approx(1.2)]


def test_times_are_compared_as_speeds(tmp_path):
    def timed(role, milliseconds):
        metrics = (Metric("decode_ms_batch1", milliseconds, "ms", higher_is_better=False),)
        return TaskResult(role, "efficiency", DONE, role, {}, metrics, 1, "batch 1", PROTOCOL)

    page = markdown(stored(tmp_path, timed(DENSE, 20.0), timed(PRUNED, 16.0)), "speed")
    assert "| 20 ms | 16 ms | 1.25x as fast |" in page


def test_results_of_different_requests_are_not_compared(tmp_path):
    rows = comparison(stored(tmp_path, ppl(DENSE, 10.0, limit=None), ppl(PRUNED, 25.0, limit=2)))
    assert len(rows) == 2
    assert [row.ratio(PRUNED) for row in rows] == [None, None]


def test_ratio_to_zero_is_left_out(tmp_path):
    (row,) = comparison(stored(tmp_path, accuracy(DENSE, "lambada", 0.0), accuracy(PRUNED, "lambada", 0.5)))
    assert (row.ratio(PRUNED), row.difference(PRUNED)) == (None, 0.5)


def test_tables_show_all_columns_differences_and_protocols(tmp_path):
    failed = TaskResult(PRUNED, "ptb", FAILED, PRUNED, {}, reason="no ptb.test.txt | offline")
    results = stored(
        tmp_path,
        *(ppl(role, value) for role, value in ((DENSE, 10.0), (PRUNED, 25.0), (RECOVERED, 12.0))),
        *(accuracy(role, "piqa", value, 0.5) for role, value in ((DENSE, 0.6), (PRUNED, 0.45), (RECOVERED, 0.5))),
        failed,
    )
    console = Console(width=160)
    with console.capture() as captured:
        console.print(terminal_table(results, "title"))
    short, full = ("10.00 ±0.25", "(-15.0)"), ("10.000 ±0.25", "x0.75 (-15.0)")
    for page, own in ((captured.get(), short), (markdown(results, "title", ["a note"]), full)):
        for part in (*own, "x2.50", "x1.20", "2 x 128 tokens", "failed", "no ptb.test.txt"):
            assert part in page
    page = markdown(results, "title", ["a note"])
    assert "* **wikitext2**: token PPL on wikitext2, 2 windows of 128 tokens" in page
    assert "* a note" in page
    table = [line for line in page.splitlines() if line.startswith("| ")]
    assert {line.replace("\\|", "").count("|") for line in table} == {9}  # 8 columns


def test_one_protocol_stands_once_beside_several_metrics(tmp_path):
    console = Console(width=160)
    with console.capture() as captured:
        console.print(terminal_table(stored(tmp_path, accuracy(PRUNED, "piqa", 0.4, 0.5)), "title"))
    lines = [line.strip() for line in captured.get().splitlines()]
    assert [line for line in lines if line.startswith(("piqa", "(1)"))] == ["piqa (1)", "(1) piqa: 100 items"]
    assert len([line for line in lines if line.startswith("acc")]) == 4  # two here, two averages


def test_averages_name_their_tasks_and_metric():
    found = averages({"boolq": {"acc": 0.6}, "piqa": {"acc": 0.5, "acc_norm": 0.9}})
    assert found == {"tasks": ["boolq", "piqa"], "acc": 0.55, "acc_norm": 0.75, "acc_norm_is_acc_for": ["boolq"]}
    assert averages({}) is None


def test_the_average_is_over_tasks_that_every_model_has_by_the_same_request(tmp_path):
    results = stored(
        tmp_path,
        accuracy(DENSE, "piqa", 0.6, 0.7),
        accuracy(PRUNED, "piqa", 0.4, 0.5),
        accuracy(DENSE, "boolq", 0.9),
        accuracy(DENSE, "winogrande", 0.9, limit=1),
        accuracy(PRUNED, "winogrande", 0.9, limit=2),
    )
    assert {role: mean["tasks"] for role, mean in zero_shot_averages(results).items()} == {
        DENSE: ["piqa"],
        PRUNED: ["piqa"],
    }
    row = next(row for row in comparison(results) if row.task == "zero-shot average" and row.metric == "acc_norm")
    assert (row.values[DENSE].value, row.values[PRUNED].value) == (0.7, 0.5)
    assert "mean over piqa" in row.summary


def test_the_printed_average_says_where_acc_stands_in(tmp_path):
    rows = comparison(stored(tmp_path, *(accuracy(PRUNED, task, 0.5) for task in ZERO_SHOT)))
    (note,) = (row.summary for row in rows if row.task == "zero-shot average" and row.metric == "acc_norm")
    assert note.startswith(f"mean over {', '.join(ZERO_SHOT)}; acc for ")


@pytest.mark.parametrize(("pruned", "verdict"), [(1000.0, False), (1000.1, True)])
def test_collapse_is_more_than_a_hundred_times_the_dense_perplexity(pruned, verdict):
    assert has_collapsed(perplexity_pairs([ppl(DENSE, 10.0), ppl(PRUNED, pruned)], {})) is verdict


def test_collapse_is_judged_by_the_pruning_run_if_the_protocol_is_the_same():
    before = {**PROTOCOL, "ppl": 10.0}
    analysis = {"evaluation": {"before": {"wikitext2": before}}}
    assert has_collapsed(perplexity_pairs([ppl(PRUNED, 2000.0)], analysis)) is True
    assert has_collapsed(perplexity_pairs([ppl(PRUNED, 20.0)], analysis)) is False
    other = {"evaluation": {"before": {"wikitext2": {**before, "seq_len": 2048}}}}
    assert has_collapsed(perplexity_pairs([ppl(PRUNED, 2000.0)], other)) is None
    assert has_collapsed(perplexity_pairs([ppl(DENSE, 10.0, limit=1), ppl(PRUNED, 2000.0, limit=2)], {})) is None


def test_calibrating_on_the_evaluated_corpus_is_a_warning():
    source = "wikitext2, wikitext-2-raw-v1/train, wiki.train.raw"
    analysis = {"scoring": {"calibration": {"source": source}}}
    (warning,) = same_corpus_warnings([ppl(PRUNED, 20.0)], analysis)
    assert source in warning
    assert "wikitext-2-raw-v1/test" in warning
    assert same_corpus_warnings([ppl(DENSE, 20.0)], analysis) == []
    assert same_corpus_warnings([ppl(PRUNED, 20.0)], {"scoring": {"calibration": None}}) == []
    assert same_corpus_warnings([ppl(PRUNED, 20.0)], {"scoring": {"calibration": {"source": "c4, train"}}}) == []


@pytest.mark.parametrize("listed", [{"texts": ["c4", "wikitext2"]}, {}], ids=["listed", "older report"])
def test_every_text_of_a_calibration_counts(listed):
    source = "c4, en/train, file.gz + wikitext2, wikitext-2-raw-v1/train, wiki.train.raw"
    analysis = {"scoring": {"calibration": {"source": source, **listed}}}
    c4 = replace(ppl(PRUNED, 20.0), task="c4")
    warnings = same_corpus_warnings([ppl(PRUNED, 20.0), c4], analysis)
    assert [warning.partition("evaluated on ")[2].partition(" ")[0] for warning in warnings] == ["c4", "wikitext2"]


def test_a_recovery_that_does_harm_is_said():
    c4 = replace(ppl(RECOVERED, 21.0, limit=1), task="c4")
    (warning,) = harm_warnings([ppl(PRUNED, 20.0), ppl(RECOVERED, 20.1), ppl(DENSE, 30.0), c4])
    assert "wikitext2 is higher" in warning
    for others in ([ppl(RECOVERED, 20.0)], [ppl(RECOVERED, 30.0, limit=1)], [ppl(DENSE, 30.0)], []):
        assert harm_warnings([ppl(PRUNED, 20.0), *others]) == []


@pytest.mark.parametrize(("timing_spread", "warned"), [(1.5, False), (1.6, True)])
def test_latencies_of_a_busy_machine_are_a_warning(timing_spread, warned):
    timed = TaskResult(PRUNED, "efficiency", DONE, PRUNED, {}, protocol={"timing_spread": timing_spread})
    assert [
        f"more than {timing_spread} times as long as the fastest" in warning for warning in busy_warnings([timed])
    ] == [True] * warned


def crowded(tmp_path):
    """Three models with the largest numbers that tables meet."""
    items = []
    for place, role in enumerate((DENSE, PRUNED, RECOVERED)):
        static = Static(7_615_616_512, 15_231_233_024, 57_344, 7_070_000_000, 401_408)
        timings = {batch: Timing(1234.5 * batch, 350.13 * batch, 15_231_233_024) for batch in (1, 16)}
        metrics = static_metrics(static) + timing_metrics(timings, Workload())
        items.append(TaskResult(role, "efficiency", DONE, role, {}, metrics, 5, "prompt 128", PROTOCOL))
        items.append(ppl(role, (29.24, 37.81, 1234.56)[place]))
        collapsed = Metric("target_ppl", (10.5, 7322621015471899648.0, 99999.4)[place], "", (1.0, 7e17, 123.0)[place])
        metrics = (Metric("acc", 0.4381, "", 0.0145, True), collapsed)
        items.append(TaskResult(role, "lambada", DONE, role, {}, metrics, 5153, "5153 items", PROTOCOL))
        items.append(accuracy(role, "arc_challenge", 0.4381, 0.4562))
    return stored(tmp_path, *items)


def test_eighty_columns_cut_no_number_and_tell_batch_sizes_apart(tmp_path):
    console = Console(width=80)
    with console.capture() as captured:
        console.print(terminal_table(crowded(tmp_path), "title"))
    page = captured.get()
    assert "…" not in page
    assert max(map(len, page.splitlines())) <= 80
    rows = {line[2:20].strip(): line[20:].split() for line in page.splitlines() if line.startswith("  ")}
    assert rows["prefill ms b1"][0] == "1234"
    assert rows["prefill ms b16"][0] == "1.975e+04"
    assert rows["target_ppl"][2:4] == ["7.323e+18", "x7.0e+17"]


@pytest.mark.parametrize(
    ("value", "stderr", "shown"),
    [
        (29.244, 3.772, "29.244 ±3.772"),
        (7322621015471899648.0, 7e17, "7.323e+18 ±7.000e+17"),
        (99999.4, None, "99999.400"),
    ],
)
def test_a_collapsed_value_is_in_scientific_notation(value, stderr, shown):
    assert format_metric(Metric("target_ppl", value, "", stderr)) == shown


def answers(role, task, correct, name="acc", **request):
    metric = Metric(name, correct.count("1") / len(correct), "", 0.1, True, correct)
    others = () if name == "acc" else (Metric("acc", 0.5, "", 0.1, True, None),)
    return TaskResult(role, task, DONE, role, request, (metric, *others), len(correct), "items", {})


def test_the_error_of_a_difference_is_that_of_the_items_on_which_models_disagree(tmp_path):
    """Dense and pruned model disagree on 2 of 8 items, in opposite directions: stdev of -1, 1 and six zeros."""
    results = stored(tmp_path, answers(DENSE, "piqa", "11110000"), answers(PRUNED, "piqa", "01110001"))
    rows = comparison(results)
    expected = np.std([-1, 0, 0, 0, 0, 0, 0, 1], ddof=1) / np.sqrt(8)
    assert [row.difference_stderr for row in rows if row.metric == "acc"] == [{PRUNED: pytest.approx(expected)}] * 2
    assert comparisons_as_dicts(results)[0]["difference_stderr"] == pytest.approx(expected)
    assert f"+0.0 ±{100 * expected:.1f}" in markdown(results, "title")


def test_the_error_of_a_mean_over_tasks_takes_them_as_independent(tmp_path):
    """The average of acc_norm takes acc where a task has nothing else."""
    pairs = {"boolq": ("1100", "1010", "acc"), "piqa": ("1111", "0111", "acc_norm")}
    results = stored(
        tmp_path,
        *(answers(DENSE, task, dense, name) for task, (dense, _, name) in pairs.items()),
        *(answers(PRUNED, task, pruned, name) for task, (_, pruned, name) in pairs.items()),
    )
    errors = [np.std(differences, ddof=1) / 2 for differences in ([0, -1, 1, 0], [-1, 0, 0, 0])]
    (mean,) = (row for row in comparison(results) if (row.task, row.metric) == ("zero-shot average", "acc_norm"))
    assert mean.difference_stderr == {PRUNED: pytest.approx(np.hypot(*errors) / 2)}


@pytest.mark.parametrize("dense", ["", "1100110", "1"])
def test_without_the_same_items_a_difference_has_no_error(dense, tmp_path):
    """Files of older versions hold no items."""
    known = answers(PRUNED, "piqa", "11001100")
    metric = replace(known.metrics[0], correct=dense or None)
    results = stored(tmp_path, replace(known, role=DENSE, metrics=(metric,)), known)
    assert [row.difference_stderr for row in comparison(results)] == [{}, {}, {}]
    assert "(+0.0)" in markdown(results, "title")
