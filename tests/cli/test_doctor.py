"""``hgsp doctor`` on real folders."""

import json

import pytest

from conftest import make_tiny
from hgsp.cli import doctor
from hgsp.cli.main import main
from hgsp.exports.engines import ENGINES
from hgsp.models.checkpoint import save_pruned
from hgsp.pruning.surgery import apply_plan
from plans import mixed_plan, plan_dropping


@pytest.fixture
def pruned(tokenizer, tmp_path):
    """A folder as pruning writes it, with odd widths."""
    folder = tmp_path / "pruned"
    folder.mkdir()
    model = make_tiny("llama-8q4kv")
    save_pruned(apply_plan(model, mixed_plan(model)), tokenizer, folder)
    return folder


def table_of(text):
    """Lines of the three tables; the commands below may be longer."""
    *tables, _ = text.split("\n\n")
    return "\n\n".join(tables).splitlines()


@pytest.mark.parametrize("width", [40, 10])
def test_every_engine_has_a_line_and_nothing_is_cut(width, pruned, capsys):
    folder = pruned.rename(pruned.with_name("f" * width))
    assert main(["doctor", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert all(len(line) <= 80 for line in table_of(printed)[2:])
    assert all(f"\n{engine.name} " in printed for engine in ENGINES)
    assert "…" not in printed
    assert "\ncommon divisors      KV groups 1, MLP widths " in printed
    assert "tensor parallel" in printed
    commands = printed.split("\n\n")[-1].splitlines()
    assert f"hgsp export {folder} --to gguf" in commands


def test_json_has_the_same_verdicts(pruned, capsys):
    assert main(["doctor", str(pruned), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    by_name = {engine["engine"]: engine for engine in found["engines"]}
    assert by_name["llama.cpp F16, Q8_0"]["export"] == "gguf"
    assert by_name["llama.cpp F16, Q8_0"]["changes"] == ["--mlp_multiple_of 32"]
    assert by_name["SGLang"]["status"] == "no"
    assert by_name["SGLang"]["use"] is None
    assert by_name["Transformers"]["installed"].startswith("transformers 5")
    assert found["divisibility"]["group_sizes"] == []
    assert found["sizes"][0]["form"] == "Transformers, vLLM"


def test_engines_that_were_read_and_not_run_are_marked(pruned, capsys):
    assert main(["doctor", str(pruned)]) == 0
    rows = " ".join(capsys.readouterr().out.split())
    for engine in ENGINES:
        row = rows.partition(f" {engine.name} ")[2].partition("common divisors")[0]
        following = next((other.name for other in ENGINES[ENGINES.index(engine) + 1 :]), "format")
        marked = "not run" in row.partition(f" {following} ")[0]
        assert marked == (engine.name in ("SGLang", "TensorRT-LLM", "ONNX, OpenVINO"))


def test_dense_models_and_uniform_results_are_stock(saved, make, tokenizer, tmp_path, capsys):
    dense = saved(make("mistral-8q4kv"))
    model = make("mistral-8q4kv")
    uniform = tmp_path / "uniform"
    uniform.mkdir()
    every = range(model.config.num_hidden_layers)
    plan = plan_dropping(model, kv={i: [0] for i in every}, mlp={i: range(32) for i in every})
    save_pruned(apply_plan(model, plan), tokenizer, uniform)
    for folder in (dense, uniform):
        assert main(["doctor", str(folder), "--json"]) == 0
        engines = json.loads(capsys.readouterr().out)["engines"]
        others = {item["engine"]: item["status"] for item in engines if "llama.cpp" not in item["engine"]}
        del others["GPTQ, AWQ, int4 groups"]  # these heads are narrower than a group
        assert set(others.values()) == {"runs"}


def test_exports_are_named(tmp_path, capsys):
    gguf, decilm = tmp_path / "model-gguf", tmp_path / "model-decilm"
    for folder in (gguf, decilm):
        folder.mkdir()
    (gguf / "model.gguf").touch()
    (decilm / "config.json").write_text('{"model_type": "nemotron-nas"}')
    assert main(["doctor", str(gguf)]) == 0
    assert "is an export (--to gguf) for llama.cpp F16, Q8_0" in capsys.readouterr().out
    assert main(["doctor", str(decilm), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["export"] == "decilm"
    assert found["engines"] == ["vLLM", "SGLang", "TensorRT-LLM"]


@pytest.mark.parametrize("content", [None, "[]", '{"model_type": "gpt2"}', "{"])
def test_folders_without_a_model_are_refused(content, tmp_path, capsys):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert main(["doctor", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: expected ")
    assert captured.out == ""


def test_programs_count_where_no_package_is_installed(monkeypatch):
    engine = next(engine for engine in ENGINES if "ollama" in engine.programs)
    monkeypatch.setattr(doctor, "package_version", lambda _: None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/bin/{name}" if name == "ollama" else None)
    assert doctor.installed(engine) == "ollama"
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    assert doctor.installed(engine) == ""
