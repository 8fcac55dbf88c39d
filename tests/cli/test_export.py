"""``hgsp export`` refuses what it cannot write in one line, and leaves nothing half-written."""

import json
import shutil

import pytest

from conftest import make_tiny
from exporting import pruned_folder
from hgsp.cli.main import main
from hgsp.exports.names import GGUF_TYPES, TARGETS


@pytest.fixture
def uniform(tokenizer, tmp_path):
    """A checkpoint that every target holds."""
    return pruned_folder(make_tiny("llama-8q4kv"), "uniform", tokenizer, tmp_path / "pruned")


@pytest.fixture
def refusal(tmp_path, capsys):
    """``refusal(*arguments)`` is the line by which the command refuses them, with nothing written."""

    def run(*arguments, code=2):
        before = files_in(tmp_path)
        capsys.readouterr()
        assert main(["export", *map(str, arguments)]) == code
        captured = capsys.readouterr()
        assert captured.out == ""
        assert len(captured.err.splitlines()) == 1
        assert files_in(tmp_path) == before
        return captured.err

    return run


def files_in(folder):
    """Contents of files by path; locks are empty and hidden."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock")}


def changed_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("target", TARGETS)
def test_a_folder_that_holds_something_is_refused(uniform, refusal, tmp_path, target):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert "full, which is not empty" in refusal(uniform, "--to", target, "--output", tmp_path / "full")


@pytest.mark.parametrize("target", TARGETS)
def test_an_output_that_is_a_file_is_refused(uniform, refusal, tmp_path, target):
    (tmp_path / "file").write_text("mine")
    assert "file" in refusal(uniform, "--to", target, "--output", tmp_path / "file")


@pytest.mark.parametrize(
    ("flags", "known"), [(("--to", "onnx"), TARGETS), (("--to", "gguf", "--type", "q9_9"), GGUF_TYPES)]
)
def test_unknown_targets_and_types_are_refused_with_the_known_ones(uniform, capsys, flags, known):
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(uniform), *flags])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert all(name in error for name in known)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'"),
        ({"model_type": "nemotron-nas"}, "model_type 'nemotron-nas'"),  # an export
        ({"model_type": None}, "model_type 'None'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "export before you quantise"),
        ({"num_hidden_layers": "three"}, "config.json"),
    ],
    ids=["gpt2", "export", "no-type", "quantised", "nonsense"],
)
def test_foreign_checkpoints_are_refused(uniform, refusal, target, changes, message):
    changed_config(uniform, **changes)
    assert message in refusal(uniform, "--to", target)


@pytest.mark.parametrize("target", TARGETS)
def test_a_missing_tokenizer_is_refused(uniform, refusal, target):
    for file in uniform.glob("tokenizer*"):
        file.unlink()
    assert "tokenizer files" in refusal(uniform, "--to", target)


@pytest.mark.parametrize("target", sorted(TARGETS.keys() - {"gguf"}))  # whose vocabulary needs merges: test_gguf.py
def test_a_full_disk_is_refused(uniform, refusal, monkeypatch, target):
    usage = shutil.disk_usage(uniform)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert "free" in refusal(uniform, "--to", target)


def test_no_checkpoint_is_refused(refusal, tmp_path):
    assert "config.json" in refusal(tmp_path / "nothing", "--to", "stock")
