"""What a run says from its start to its end, in a terminal of 80 columns, and what it refuses at once."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config

import run_global_pruning
from conftest import REPOSITORY, make_tiny
from hgsp.cli import cut
from hgsp.models.devices import bf16_warnings
from hgsp.models.geometry import geometry_of
from hgsp.pruning.plan import PrunePlan

pty = pytest.importorskip("pty")

SETTINGS = {
    "--pruning_ratio": "0.2",
    "--temperature": "0.0",
    "--dataset": "builtin",
    "--eval_tasks": "builtin",
    "--eval_max_windows": "2",
    "--eval_seq_len": "64",
    "--nsamples": "4",
    "--seq_len": "32",
    "--min_mlp_width": "8",
    "--dtype": "float32",
    "--device": "cpu",
}
FLAGS = [part for pair in SETTINGS.items() for part in pair]
QWEN_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "num_hidden_layers": 28,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
}


@pytest.fixture
def base(saved):
    return str(saved(make_tiny("llama-8q4kv")))


@pytest.fixture
def prune(base, tmp_path):
    """``prune(*flags)`` runs the command into ``tmp_path/out`` and returns its exit code."""

    def run(*flags):
        paths = ["--base_model", base, "--results_dir", str(tmp_path), "--output_name", "out"]
        return run_global_pruning.main([*paths, *FLAGS, *map(str, flags)])

    return run


def in_terminal(*command, cwd):
    """Run a command in a pseudo terminal of 80 columns and 24 lines; return what it shows, without colours."""
    main, terminal = pty.openpty()
    size = ["stty", "rows", "24", "cols", "80"]
    subprocess.run(size, stdin=terminal, check=True)
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    environment.pop("COLUMNS", None)
    streams = {"stdin": terminal, "stdout": terminal, "stderr": terminal}
    with subprocess.Popen([sys.executable, *map(str, command)], cwd=cwd, env=environment, **streams) as process:
        os.close(terminal)
        shown = b""
        while chunk := read(main):
            shown += chunk
    os.close(main)
    assert process.returncode == 0, shown.decode()
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode()).replace("\r\n", "\n")


def read(descriptor):
    """Return the next output; Linux raises an error at the end of a pseudo terminal."""
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:
        return b""


@pytest.fixture(scope="module")
def told(tokenizer, tmp_path_factory):
    """The output of one run from the checkout's script, in a terminal."""
    folder = tmp_path_factory.mktemp("told")
    make_tiny("llama-8q4kv").save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    base = ["--base_model", "base", "--output_name", "out", "--reconstruct", "lstsq"]
    script = REPOSITORY / "run_global_pruning.py"
    return in_terminal(script, *base, *FLAGS, cwd=folder), folder / "results" / "out"


def test_a_run_lists_its_stages_first_and_ends_each_with_its_seconds(told):
    shown, folder = told
    start = shown.index("stages, with times")
    stages = shown[start : shown.index("in all", start)]
    for stage in ("load", "score", "reconstruct", "evaluate", "save"):
        assert re.search(rf"^  {stage} ", stages, re.MULTILINE)
    assert "--no_bin" in stages
    assert re.search(r"in all +about .*, memory about [0-9.]+ [MG]B", shown)
    assert re.search(r"^forward .* 3/3 .*0:00:\d\d", shown, re.MULTILINE)  # a finished bar stays
    analysis = json.loads((folder / "pruning_analysis.json").read_text())
    done = dict(re.findall(r"^done: (\w+), ([0-9.]+) s$", shown, re.MULTILINE))
    assert done.keys() <= analysis["timings_s"].keys()


def test_screens_have_no_protocol_and_no_cut_number(told):
    shown, folder = told
    for part in ("…", "sha256", "stride", "{'"):
        assert part not in shown
    table = shown[shown.index(" parameters ") : shown.index("asked 0.2000")]
    assert max(map(len, table.splitlines())) <= 80
    assert "sha256" in (folder / "logs" / "training.log").read_text()


def test_a_run_ends_with_layers_a_verdict_and_commands_of_the_checkout(told):
    shown, folder = told
    analysis = json.loads((folder / "pruning_analysis.json").read_text())
    kept = [(len(layer["kept_kv_groups"]), len(layer["kept_mlp_channels"])) for layer in analysis["layers"]]
    assert "kept in each layer: KV groups of 4, MLP channels of 96" in shown
    for index, (num_kv, width) in enumerate(kept):
        assert re.search(rf"\b{index}: +{num_kv} +{width}\b", shown)
    verdict = analysis["verdict"]
    assert f"verdict: {verdict['name']}: {verdict['reason']}" in shown.replace("\n", " ")
    commands = [shlex.split(command) for command in re.findall(r"^next: (.*)$", shown, re.MULTILINE)]
    assert [Path(command[1]).name for command in commands][-1] == "run_evaluation.py"
    assert not {"wikitext", "c4", "yahma/alpaca-cleaned"} & {part for command in commands for part in command}


def test_both_shares_and_what_was_asked_are_shown(prune, tmp_path, capsys):
    assert prune("--ratio_of", "decoder", "--skip_evaluation", "--no_bin") == 0
    analysis = json.loads((tmp_path / "out" / "pruning_analysis.json").read_text())
    assert (analysis["asked_ratio"], analysis["asked_ratio_of"]) == (0.2, "decoder")
    output = capsys.readouterr().out
    assert "asked 0.2000 of the decoder layers' parameters" in output
    assert f"{analysis['reached_ratio']:.2%} of all parameters" in output
    assert f"{analysis['reached_ratio_decoder']:.2%} of the decoder's" in output
    assert analysis["verdict"] is None


def test_a_ratio_of_the_decoder_is_the_matching_ratio_of_all(prune, base, tmp_path):
    assert prune("--ratio_of", "decoder", "--skip_evaluation", "--no_bin") == 0
    plan = PrunePlan.read_json(tmp_path / "out" / "prune_plan.json")
    geometry = geometry_of(make_tiny("llama-8q4kv"))
    ratio = 0.2 * geometry.decoder_params / geometry.total_params
    scores = ["--scores", str(tmp_path / "out" / "scores.npz"), "--results_dir", str(tmp_path), "--skip_evaluation"]
    for name, flags in (("all", ["--pruning_ratio", str(ratio)]), ("again", ["--ratio_of", "decoder"])):
        assert cut.main(["--base_model", base, "--output_name", name, *FLAGS, *scores, *flags]) == 0
        assert PrunePlan.read_json(tmp_path / name / "prune_plan.json").layers == plan.layers


def test_a_ratio_of_the_decoder_out_of_reach_is_refused_before_weights_are_read(prune, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hgsp.pipeline.prune.load_for_pruning", lambda *_, **__: pytest.fail("read weights"))
    assert prune("--ratio_of", "decoder", "--pruning_ratio", "0.99") == 2
    assert "of the decoder layers' parameters" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("free", "flags", "said"),
    [
        (10_000, (), "--no_bin saves"),
        (10_000, ("--no_bin",), "free space, or choose another disk with --results_dir"),
        (10_000, ("--finetune", "--finetune_data_path", "builtin"), "--no_bin saves"),
    ],
)
def test_a_disk_that_is_too_small_is_refused_at_once(prune, tmp_path, capsys, monkeypatch, free, flags, said):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(free, 0, free))
    monkeypatch.setattr("hgsp.pipeline.prune.load_for_pruning", lambda *_, **__: pytest.fail("read weights"))
    assert prune(*flags) == 2
    error = capsys.readouterr().err
    assert "of free disk" in error
    assert said in error
    assert ("--no_bin saves" in error) == ("--no_bin" not in flags)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("device", "dtype"), [("cuda:0", "bfloat16"), ("auto", "bfloat16"), ("cuda:0", "float16")])
def test_a_card_without_bfloat16_is_named(monkeypatch, device, dtype):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    found = bf16_warnings(device, dtype)
    assert len(found) == (dtype == "bfloat16")
    assert all("Tesla T4 has no bfloat16 hardware" in line and "--dtype float16" in line for line in found)
    assert bf16_warnings("cpu", dtype) == []


def test_a_weak_run_ends_with_a_hint_and_one_with_a_recipe_does_not(prune, capsys):
    decoder = ("--pruning_ratio", "0.3", "--ratio_of", "decoder", "--skip_evaluation", "--no_bin")
    assert prune(*decoder) == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("hint: use --recipe balanced instead of --temperature. On SmolLM2-135M-Instruct, 30% of")
    assert prune(*decoder, "--recipe", "fast", "--overwrite") == 0
    assert "hint:" not in capsys.readouterr().err


def test_a_dry_run_of_seven_billion_parameters_cuts_no_number(tmp_path):
    """From a config alone; the sizes are those of Qwen2.5-7B."""
    Qwen2Config(**QWEN_7B, architectures=["Qwen2ForCausalLM"]).save_pretrained(tmp_path / "qwen")
    flags = ("--base_model", "qwen", "--output_name", "out", "--pruning_ratio", "0.2", "--dry_run", "--device", "cpu")
    shown = in_terminal(REPOSITORY / "run_global_pruning.py", *flags, cwd=tmp_path)
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    for number in ("7,615,616,512", "15,231,233,024", "233,057,792", "18,944", "57,344"):
        assert number in shown


def test_a_dry_run_with_scores_has_kept_totals_and_fits(base, prune, tmp_path):
    assert prune("--skip_evaluation", "--no_bin") == 0
    scores = tmp_path / "out" / "scores.npz"
    flags = ("--base_model", base, "--output_name", "dry", *FLAGS, "--scores", scores, "--dry_run")
    shown = in_terminal(REPOSITORY / "run_global_pruning.py", *flags, cwd=tmp_path)
    analysis = json.loads((tmp_path / "out" / "pruning_analysis.json").read_text())
    kept = next(line.split() for line in shown.splitlines() if line.split()[:1] == ["kept"])
    assert kept[1] == f"{analysis['params_after']:,}"
    assert max(map(len, shown.splitlines())) <= 80
    assert f"{analysis['reached_ratio']:.2%} of all, {analysis['reached_ratio_decoder']:.2%} of the decoder" in shown
