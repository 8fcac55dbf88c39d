"""Reports beside the results of real commands, and ``hgsp report``."""

import json

import pytest
import yaml

import reports
from hgsp.cli import report
from hgsp.cli.main import main


@pytest.fixture
def result(prune):
    code, folder = prune("p20", "--temperature", "1.0", "--search", "2", "--search_nsamples", "12")
    assert code == 0
    return folder


def test_a_pruned_result_has_its_page_and_an_evaluation_renews_it(result, evaluate):
    document = (result / "report.html").read_text()
    for title in ("Size", "Perplexity", "Layers", "Scores", "Prior", "Budget search", "Reconstruction", "Samples"):
        assert f">{title}</h2>" in document
    assert "Tasks: no task was measured" in document
    assert "## Perplexity" in (result / "report.md").read_text()
    base = yaml.safe_load((result / "run.yaml").read_text())["base_model"]
    assert evaluate(result, "--base_model", base, "--compare", "--tasks", "piqa,wikitext") == 0
    assert "Accuracy by task" in (result / "report.html").read_text()
    assert "Accuracy by task" in (result / "evaluation" / "report.html").read_text()


def test_prompts_are_continued_by_both_models(result):
    prompts = json.loads((result / "pruning_analysis.json").read_text())["samples"]["prompts"]
    assert [prompt["chat"] for prompt in prompts] == [False, False]  # the tiny tokenizer has no chat template
    assert all(isinstance(prompt[stage], str) for prompt in prompts for stage in ("before", "after"))


def test_the_command_renews_the_page_of_a_result(tmp_path, capsys):
    folder = reports.write_files(tmp_path, pruning=reports.pruning())
    assert main(["report", str(folder)]) == 0
    first = (folder / "report.html").read_text()
    assert main(["report", str(folder)]) == 0
    assert (folder / "report.html").read_text() == first
    assert str(folder / "report.md") in capsys.readouterr().out
    (folder / "report.html").unlink()
    assert main(["report", str(folder), "--output", str(tmp_path / "other")]) == 0
    assert not (folder / "report.html").exists()
    assert (tmp_path / "other" / "report.html").read_text() == first


def test_several_folders_or_one_with_several_results_are_compared(tmp_path, monkeypatch):
    for name in ("p20", "p30", ".p40-x.partial"):
        (tmp_path / "results" / name).mkdir(parents=True)
        reports.write_files(tmp_path / "results" / name, pruning=reports.pruning())
    monkeypatch.chdir(tmp_path)
    assert report.main([str(tmp_path / "results" / name) for name in ("p20", "p30")]) == 0
    document = (tmp_path / "report.html").read_text()
    assert "2 results compared" in document
    (tmp_path / "report.html").unlink()
    assert report.main([str(tmp_path / "results")]) == 0
    assert (tmp_path / "report.html").read_text() == document


def test_what_is_no_result_is_refused_and_foreign_pages_stay(tmp_path, capsys):
    assert report.main([str(tmp_path / "missing")]) == 2
    assert report.main([str(tmp_path)]) == 2
    assert "expected a result below" in capsys.readouterr().err
    folder = reports.write_files(tmp_path, pruning=reports.pruning())
    (folder / "report.html").write_text("my own page")
    assert report.main([str(folder)]) == 2
    assert "written by something else" in capsys.readouterr().err
    assert (folder / "report.html").read_text() == "my own page"
    (tmp_path / "file").touch()
    assert report.main([str(folder), "--output", str(tmp_path / "file")]) == 2
