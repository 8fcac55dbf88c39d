"""Paths in reports: none names a place of the machine, and commands can be repeated from the launch folder."""

import json
import shlex
from pathlib import Path

import pytest

from hgsp.console.portable_paths import portable, portable_command, portable_path


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """The current folder, a home folder elsewhere, and a model beside each."""
    for folder in ("work/here", "work/models/dense", "home/ann/models/dense"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home" / "ann")
    monkeypatch.chdir(tmp_path / "work" / "here")
    return tmp_path


@pytest.mark.parametrize("name", ["meta-llama/Meta-Llama-3-8B", "results/p", "../x", "wikitext2", "", "/"])
def test_ids_and_relative_paths_stay(name, launch):
    assert portable_path(name) == name


def test_an_absolute_path_is_relative_to_the_launch_folder(launch):
    assert portable_path(str(launch / "work" / "models" / "dense")) == "../models/dense"
    assert Path(portable_path(str(launch / "work" / "models" / "dense"))).is_dir()
    assert portable_path(str(launch / "work" / "here" / "out")) == "out"


def test_a_path_that_shares_only_the_root_is_below_home_or_a_name(launch, monkeypatch):
    monkeypatch.chdir("/usr")
    assert portable_path(str(launch / "home" / "ann" / "models" / "dense")) == "~/models/dense"
    assert portable_path("/no-such-place/models/dense") == "dense"


def test_a_command_stays_a_command(launch):
    model, text = launch / "work" / "models" / "dense", launch / "work" / "here" / "a text.txt"
    command = shlex.join(["run.py", "--base_model", str(model), f"--dataset=wikitext2,{text}", "--ratio", "0.2"])
    assert (
        portable_command(command) == "run.py --base_model ../models/dense '--dataset=wikitext2,a text.txt' --ratio 0.2"
    )
    assert portable_command(portable_command(command)) == portable_command(command)


def test_the_shell_expands_home_in_a_command(launch, monkeypatch):
    monkeypatch.chdir("/usr")
    model = launch / "home" / "ann" / "my models" / "dense"
    assert portable_command(shlex.join(["run.py", str(model)])) == "run.py ~/'my models/dense'"


def test_paths_within_sentences_are_found_where_they_exist_and_samples_stay(launch):
    place = launch / "work" / "models" / "dense"
    other = launch / "work" / "a folder"
    other.mkdir()
    report = {
        "warnings": [f"{place}: unlike {other}, and/or 3/4 of https://host/work"],
        "samples": {"before": str(place)},
        "nested": ({"path": str(place / "missing.bin")}, 1.5, None, True),
    }
    found = portable(report)
    assert found["warnings"] == ["../models/dense: unlike ../a folder, and/or 3/4 of https://host/work"]
    assert found["samples"] == report["samples"]
    assert found["nested"] == [{"path": "../models/dense/missing.bin"}, 1.5, None, True]
    assert json.dumps(portable(found)) == json.dumps(found)


def test_a_text_too_long_for_a_path_is_no_path(launch):
    assert portable("/" + "x" * 10_000) == "/" + "x" * 10_000
