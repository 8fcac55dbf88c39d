"""What every command offers: help that fits the rules, versions, completion, and runs repeated from their settings."""

import argparse
import dataclasses
import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import run_global_pruning
from conftest import REPOSITORY, make_tiny
from hgsp.cli import cut, evaluate, export, finetune, main, profile, prune, score, study
from hgsp.cli.main import COMMANDS, completion_parser, options_of
from hgsp.console.parser import GENERAL, REQUIRED, group_names, group_of, is_required
from hgsp.console.settings_file import RUN_SETTINGS
from hgsp.pipeline.config import settings_of
from hgsp.study.matrix import Cell
from hgsp.study.resume import differences
from pruning import analysis_of, tensors_of

SCORING = ("--nsamples", "2", "--seq_len", "32", "--dtype", "float32", "--device", "cpu", "--dataset", "builtin")
QUICK = (*SCORING, "--temperature", "0", "--eval_tasks", "builtin", "--eval_max_windows", "1", "--eval_seq_len", "64")
QUICK += ("--min_mlp_width", "8", "--no_bin")


def run(command, *argv):
    return command.main([str(word) for word in argv])


def help_of(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main.main([command, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def repeated(command, folder, name=RUN_SETTINGS, *flags):
    """Run a command again from the settings beside its result."""
    assert run(command, "--config", folder / name, *flags) == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_the_command_and_lists_every_flag_in_groups(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown, options = help_of(command, capsys), options_of(command)
    assert shown.startswith(f"usage: hgsp {command}")
    assert "None" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    titles = [line[:-1] for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == [title for title in group_names(options) if f"\n{title}:" in shown]
    assert titles[-1] == GENERAL
    required = [item for item in dataclasses.fields(options) if is_required(item)]
    assert not required or titles[0] == REQUIRED
    usage = " ".join(shown.partition("\n\n")[0].split())
    for item in dataclasses.fields(options):
        name = item.metadata["metavar"] if item.metadata.get("positional") else f"--{item.name}"
        assert f"\n  {name}" in shown, name
        assert (group_of(item, options) == REQUIRED) == (name in usage.split()), name
    for flag in ("--config FILE", "-h, --help", "--version"):
        assert f"\n  {flag}" in shown


def test_help_of_hgsp_lists_the_commands_and_explains_completion(capsys):
    assert main.main([]) == main.main(["help"]) == main.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert all(f"\n  {command} " in shown for command in COMMANDS)
    assert "register-python-argcomplete hgsp" in shown


def test_hgsp_cut_requires_scores_and_shows_so(capsys):
    assert "--scores" in help_of("cut", capsys).partition("\n\n")[0]
    with pytest.raises(SystemExit):
        run(cut, "--base_model", "m", "--output_name", "o", "--pruning_ratio", "0.2")
    assert "expected --scores; got none" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_numeric_flag_names_its_range_or_its_default(command):
    """A seed has no range."""
    fields = [item for item in dataclasses.fields(options_of(command)) if item.metadata.get("type") in (int, float)]
    assert all("range" in item.metadata for item in fields if item.name != "seed")


@pytest.mark.parametrize("command", COMMANDS)
def test_options_refuse_values_outside_of_the_ranges_that_help_names(command):
    outside = {"at least 0": -1, "at least 1": 0, "at least 2": 1, "above 0": 0, "above 1": 1}
    outside |= {"in [0, 1)": 1, "in [0, 1]": 1.5, "in (0, 1]": 0, "in [-10, 10]": 11, "at least 0, or inf": -1}
    together = {"reconstruct_nsamples": {"reconstruct": "lstsq"}, "search_nsamples": {"search": 1}}
    options = options_of(command)
    needed = {item.name: "x" for item in dataclasses.fields(options) if is_required(item)}
    needed |= {"pruning_ratio": 0.2} if hasattr(options, "pruning_ratio") else {}
    for item in dataclasses.fields(options):
        if "range" in item.metadata:
            value = outside[item.metadata["range"]]
            value = (value,) if item.metadata.get("nargs") else value
            with pytest.raises(ValueError, match=f"--{item.name}") as refused:
                options(**(needed | together.get(item.name, {}) | {item.name: value}))
            assert str(refused.value).startswith("expected ")


def test_help_versions_and_errors_of_every_command_start_no_heavy_library():
    script = """
import sys
from hgsp.cli.main import COMMANDS, main
for command in COMMANDS:
    for arguments in (["--help"], ["--version"], ["--no-such-flag"]):
        try: main([command, *arguments])
        except SystemExit as stop: assert stop.code == (2 if arguments == ["--no-such-flag"] else 0)
assert not {"torch", "transformers", "numpy", "yaml", "rich"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("error: expected a flag of hgsp") == len(COMMANDS)


def test_python_m_hgsp_is_hgsp_and_scripts_have_their_own_name_and_version():
    def python(*words):
        done = subprocess.run(
            [sys.executable, *words], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60
        )
        return done.returncode, done.stdout, done.stderr

    version = importlib.import_module("hgsp").__version__
    assert python("-m", "hgsp", "--version") == python("-m", "hgsp", "prune", "--version") == (0, f"{version}\n", "")
    for script in ("run_global_pruning.py", "finetune_lora.py", "evaluation/run_evaluation.py"):
        assert python(script, "--version") == (0, f"{version}\n", "")
        assert python(script, "--help")[1].startswith(f"usage: {script.rpartition('/')[2]} --")
    assert python("-m", "hgsp", "prun") == (
        2,
        "",
        "error: expected a command of hgsp; got 'prun'; did you mean prune?\n",
    )


def test_all_flags_of_all_commands_are_completed():
    [commands] = [action for action in completion_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    assert list(commands.choices) == list(COMMANDS)
    for name, parser in commands.choices.items():
        flags = {flag for action in parser._actions for flag in action.option_strings}
        assert {f"--{item.name}" for item in dataclasses.fields(options_of(name)) if not is_required(item)} <= flags


def test_the_shell_asks_for_completions():
    pytest.importorskip("argcomplete", reason="the extra hgsp[completion] is not installed")
    line = "hgsp prune --recipe b"
    asked = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9", "_ARGCOMPLETE": "1"}
    asked |= {"_ARGCOMPLETE_IFS": " ", "_ARGCOMPLETE_SHELL": "bash"}
    shell = f"{sys.executable} -m hgsp 8>&1 9>/dev/null 1>/dev/null"
    done = subprocess.run(
        ["bash", "-c", shell], cwd=REPOSITORY, env=os.environ | asked, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["balanced", "best"]


def test_scores_cuts_and_prunings_are_repeated_from_their_settings(dense, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(score, "--base-model", dense, "--output", "scores.npz", *SCORING) == 0
    first = (tmp_path / "scores.npz").read_bytes()
    repeated(score, tmp_path, "scores.run.yaml", "--overwrite")
    assert (tmp_path / "scores.npz").read_bytes() == first
    made = ("--base_model", dense, "--pruning-ratio", "0.2", "0.3", *QUICK)
    for command, flags in ((prune, ()), (cut, ("--scores", "scores.npz"))):
        assert run(command, *made, *flags, "--output_name", "a") == 0
        repeated(command, tmp_path / "results" / "a_30", RUN_SETTINGS, "--output_name", "b")
        for ratio in (20, 30):
            one, other = (tmp_path / "results" / f"{name}_{ratio}" for name in "ab")
            assert all(torch.equal(tensor, tensors_of(other)[name]) for name, tensor in tensors_of(one).items())
            assert (one / "global_group_table.csv").read_text() == (other / "global_group_table.csv").read_text()
            assert analysis_of(one)["evaluation"] == analysis_of(other)["evaluation"]
        shutil.rmtree(tmp_path / "results")


def test_recoveries_evaluations_profiles_and_exports_are_repeated_from_their_settings(pruned, dense, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"The {n} cats sat on {n} mats."}) + "\n" for n in range(8)))
    flags = ("--data_path", rows, "--max_steps", "1", "--batch_size", "2", "--micro_batch_size", "2")
    flags += ("--skip_evaluation", "--device", "cpu", "--no_bin", "--val_size", "0")
    assert run(finetune, "--pruned_model", pruned, "--output_dir", tmp_path / "a", *flags) == 0
    repeated(finetune, tmp_path / "a", RUN_SETTINGS, "--output_dir", tmp_path / "b")
    merged = [load_file(tmp_path / name / "model.safetensors") for name in "ab"]
    assert all(torch.equal(tensor, merged[1][name]) for name, tensor in merged[0].items())
    measured = ("--model_path", pruned, "--tasks", "builtin", "--seq_len", "64", "--limit", "1", "--device", "cpu")
    assert run(evaluate, *measured, "--output", tmp_path / "c") == 0
    repeated(evaluate, tmp_path / "c", "results.run.yaml", "--output", tmp_path / "d")
    values = [json.loads((tmp_path / name / "results.json").read_text())["results"] for name in "cd"]
    assert [item["metrics"] for item in values[0]] == [item["metrics"] for item in values[1]]
    timed = ("--repeats", "1", "--batch_sizes", "1", "--context_lengths", "8", "--mode", "prefill", "--device", "cpu")
    assert run(profile, dense, "--output", tmp_path / "latency.json", *timed) == 0
    repeated(profile, tmp_path, "latency.run.yaml", "--overwrite")
    assert run(export, pruned, "--to", "decilm", "--output", tmp_path / "e") == 0
    repeated(export, tmp_path / "e", RUN_SETTINGS, "--output", tmp_path / "f")
    assert (tmp_path / "e" / "config.json").read_text() == (tmp_path / "f" / "config.json").read_text()


def test_a_study_reads_its_own_flags_and_those_of_its_cells_from_one_file(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text("results-dir: out\nrecipe: fast\nnsamples: 3\nskip_evaluation: true\n")
    assert run(study, "--dry_run", "--config", "study.yaml", "--nsamples", "4") == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert "--results_dir out --recipe=fast --skip_evaluation --nsamples=3 --nsamples 4" in line
    with pytest.raises(SystemExit):
        run(study, "--dry_run", "--smok")
    assert "did you mean --smoke?" in capsys.readouterr().err
    assert run(study, "--dry_run", "--base-model", "m") == 2
    assert "MODELS_DIR" in capsys.readouterr().err
    assert run(study, "--dry_run", "--", "--token", "hf_secret") == 2
    assert "hf_secret" not in capsys.readouterr().err


@pytest.fixture
def hub(tmp_path, monkeypatch, tokenizer):
    """``hub(revision, model)`` puts a model into a hub cache, which is read offline."""
    cache = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("huggingface_hub.constants.HF_HUB_CACHE", "huggingface_hub._snapshot_download.constants.HF_HUB_CACHE"):
        monkeypatch.setattr(name, str(cache))
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))

    def add(revision, commit, model):
        repository = cache / "models--owner--tiny"
        folder = repository / "snapshots" / commit
        folder.mkdir(parents=True)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(commit)

    return add


@pytest.mark.parametrize("flags", [(), ("--offload",)])
def test_a_revision_of_a_hub_model_is_pruned_and_measured(hub, tmp_path, flags):
    """The default branch holds another model, and no word of the token is left anywhere."""
    hub("main", "0" * 40, make_tiny("llama-mqa"))
    model = make_tiny("llama-8q4kv")
    hub("v1", "1" * 40, model)
    arguments = ("--base_model", "owner/tiny", "--revision", "v1", "--token", "hf_secret", "--output_name", "o")
    pruning = ("--pruning_ratio", "0.2", "--results_dir", tmp_path / "results", *QUICK, *flags)
    assert run(run_global_pruning, *arguments, *pruning) == 0
    folder = tmp_path / "results" / "o"
    assert analysis_of(folder)["base_model"] == "owner/tiny@v1"
    assert analysis_of(folder)["params_before"] == sum(tensor.numel() for tensor in model.parameters())
    for file in folder.rglob("*"):
        assert file.is_dir() or b"hf_secret" not in file.read_bytes(), file
    measured = ("--tasks", "builtin", "--seq_len", "64", "--limit", "1", "--device", "cpu", "--compare")
    assert run(evaluate, "--model_path", folder, "--base_model", "owner/tiny", "--revision", "v1", *measured) == 0
    models = json.loads((folder / "evaluation" / "results.json").read_text())["models"]
    assert models["dense"]["identity"] == f"owner/tiny@{'1' * 40}"
    assert run(run_global_pruning, *arguments, "--revision", "none", *pruning, "--overwrite") == 2


def test_a_device_that_is_not_there_is_refused_in_one_line(dense, capsys):
    if torch.backends.mps.is_available():
        pytest.skip("this machine has an mps device")
    flags = ("--base_model", dense, "--output_name", "o", "--pruning_ratio", "0.2", *QUICK, "--device")
    for device, hint in (("mps", "leave --device out"), ("cpuu", "did you mean cpu?")):
        assert run(prune, *flags, device) == 2
        line = capsys.readouterr().err
        assert line.startswith("error: expected --device to be one of cpu")
        assert hint in line
        assert (line.count("\n"), len(line) < 200) == (1, True)
        assert run(evaluate, "--model_path", dense, "--device", device) == 2
        assert "expected --device to be one of cpu" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["llama-8q4kv", "qwen2-14q2kv", "mistral-8q4kv"])
def test_a_folder_without_tokenizer_is_refused_by_its_name(family, tmp_path, capsys):
    """From some configs transformers makes an empty tokenizer instead."""
    make_tiny(family).save_pretrained(tmp_path / "bare")
    flags = ("--base_model", tmp_path / "bare", "--output_name", "o", "--pruning_ratio", "0.2", *QUICK)
    assert run(prune, *flags, "--results_dir", tmp_path) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: expected tokenizer files in '{tmp_path / 'bare'}'; got ")
    assert "copy the tokenizer files" in line


@pytest.mark.parametrize("program", ["run_global_pruning.py", "hgsp prune", "python -m hgsp prune"])
def test_a_study_reads_the_settings_of_finished_cells_however_they_were_started(program, tmp_path):
    cell = Cell("model", "owner/base", 20)
    arguments = cell.arguments(str(tmp_path), ["--nsamples", "3"], None)
    cell.folder(str(tmp_path)).mkdir(parents=True)
    report = {"schema_version": 1, "base_model": "owner/base", "reached_ratio": 0.2, "importance_method": "taylor"}
    report["command"] = shlex.join([*program.split(), *arguments])
    (cell.folder(str(tmp_path)) / "pruning_analysis.json").write_text(json.dumps(report))
    assert differences(cell, settings_of(arguments)) == []
    other = cell.arguments(str(tmp_path), ["--nsamples", "4"], None)
    assert differences(cell, settings_of(other)) == ["--nsamples 3 instead of 4"]
