"""``hgsp profile`` on tiny models: the table it writes and prints, and requests that it refuses."""

import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from hgsp.cli import main, profile
from hgsp.costs.latency import LatencyTable, Workload
from hgsp.models.loading import inspect_model

QUICK = ("--device", "cpu", "--dtype", "float32", "--batch_sizes", "1", "2", "--context_lengths", "8", "--repeats", "2")


@pytest.fixture
def config_only(make, tmp_path):
    """Return a folder without weights."""
    make("llama-8q4kv").config.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_a_config_is_enough_for_a_table(config_only, tmp_path, capsys):
    target = tmp_path / "new" / "table.json"
    assert main.main(["profile", config_only, "--output", str(target), *QUICK]) == 0
    table, geometry = LatencyTable.read(target), inspect_model(config_only).geometry
    assert set(table.timings) == {Workload(phase, size, 8) for phase in ("prefill", "decode") for size in (1, 2)}
    assert (table.dtype, table.clock, table.model) == ("float32", "wall", config_only)
    assert table.environment["torch"]
    table.check(geometry)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines()[:-1])) <= 80  # the last line names the file
    for line in (
        "prefill: milliseconds",
        "decode: predicted speed-up",
        "KV groups: 4",
        "MLP channels: 96",
        "half of all layers",
    ):
        assert line in printed
    assert printed.endswith(f"latency table: {target}\n")


def test_one_phase_and_cpu_time_can_be_chosen(config_only, tmp_path):
    target = tmp_path / "table.json"
    flags = ("--mode", "decode", "--clock", "cpu", "--threads", "1", *QUICK)
    assert profile.main([config_only, "--output", str(target), *flags]) == 0
    content = json.loads(target.read_text())
    assert content["clock"] == "cpu"
    assert content["environment"]["threads"] == 1
    assert {entry["phase"] for entry in content["timings"]} == {"decode"}
    assert profile.main([config_only, "--output", str(target), *flags]) == 2
    assert profile.main([config_only, "--output", str(target), *flags, "--overwrite"]) == 0


@pytest.mark.parametrize(("positions", "expected"), [(512, {512}), (100, {100})])
def test_default_contexts_are_those_that_the_model_has_positions_for(make, tmp_path, positions, expected):
    make("llama-8q4kv", max_position_embeddings=positions).config.save_pretrained(tmp_path / "model")
    target, flags = tmp_path / "table.json", ("--batch_sizes", "1", "--mode", "decode", "--repeats", "1")
    assert profile.main([str(tmp_path / "model"), "--output", str(target), "--device", "cpu", *flags]) == 0
    assert {workload.context_length for workload in LatencyTable.read(target).timings} == expected


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--device", "abacus"), "expected --device to be one of cpu"),
        (("--device", "auto"), "expected --device to be one device"),
        (
            ("--context_lengths", "8", "513"),
            "expected --context_lengths of at most 512, the model's positions; got 513",
        ),
        (("--batch_sizes", "0"), "expected --batch_sizes to be at least 1 each"),
        (("--repeats", "0"), "expected --repeats to be at least 1"),
        (("--threads", "0"), "expected --threads to be at least 1"),
        (("--output", "."), "expected --output to be a file"),
    ],
)
def test_what_cannot_be_measured_is_refused(config_only, tmp_path, capsys, flags, complaint):
    target = tmp_path / "table.json"
    assert profile.main([config_only, "--output", str(target), *QUICK, *flags]) == 2
    assert complaint in capsys.readouterr().err
    assert not target.exists()


def test_models_that_cannot_be_pruned_are_refused(tmp_path, capsys):
    AutoConfig.for_model("gpt2").save_pretrained(tmp_path / "gpt2")
    assert profile.main([str(tmp_path / "gpt2"), "--output", str(tmp_path / "table.json"), *QUICK]) == 2
    assert "unsupported architecture 'gpt2'" in capsys.readouterr().err
    assert profile.main([str(tmp_path / "none"), "--output", str(tmp_path / "table.json"), *QUICK]) == 2
    assert [path.name for path in Path(tmp_path).iterdir()] == ["gpt2"]
