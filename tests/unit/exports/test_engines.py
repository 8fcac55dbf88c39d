"""Verdicts of engines on shapes, and the changes that they suggest."""

import re
from dataclasses import fields, replace

import pytest

from conftest import TINY, make_tiny
from hgsp.errors import InputError
from hgsp.exports.engines import ENGINES, engines_that_read, judge_all
from hgsp.exports.gguf_architecture import has_head_norms
from hgsp.exports.names import TARGETS
from hgsp.exports.result import ExportOptions
from hgsp.exports.source import read_source
from hgsp.exports.targets import EXPORTS
from hgsp.exports.verdict import judge
from hgsp.models.checkpoint import save_pruned
from hgsp.models.geometry import LayerShape
from hgsp.pipeline.config import PruneConfig
from hgsp.pruning.names import SHAPE_PRESETS
from hgsp.pruning.surgery import apply_plan
from sources import DENSE, extremes, source_of

ODD = ((7, 11001), (8, 13507))
ALIGNED = ((7, 11008), (8, 13568))  # multiples of 256
BY_64 = ((7, 11072), (8, 13504))
WITHOUT_ATTENTION = ((8, 11008), (0, 13568))
WITHOUT_MLP = ((8, 0), (8, 13568))
EQUAL_ATTENTION = ((8, 11008), (8, 13568))

#: engine -> verdict, for engines on which the case turns; the others are not compared.
CASES = {
    "dense": (
        source_of(),
        dict.fromkeys((engine.name for engine in ENGINES if "llama.cpp" not in engine.name), "runs"),
    ),
    "uniform": (source_of(((6, 9000),) * 2, "mistral"), {"SGLang": "runs", "vLLM": "runs", "ONNX, OpenVINO": "runs"}),
    "odd widths": (
        source_of(ODD),
        {
            "Transformers": "runs",
            "vLLM": "runs",
            "SGLang": "no",
            "llama.cpp F16, Q8_0": "export",
            "llama.cpp K-quants": "export",
            "GPTQ, AWQ, int4 groups": "no",
            "FP8, int8 per channel": "runs",
            "ONNX, OpenVINO": "no",
        },
    ),
    "multiples of 64": (source_of(BY_64), {"GPTQ, AWQ, int4 groups": "runs"}),
    "multiples of 256": (source_of(ALIGNED), {"GPTQ, AWQ, int4 groups": "runs", "TensorRT-LLM": "export"}),
    "equal attention": (source_of(EQUAL_ATTENTION), {"SGLang": "runs"}),
    "a layer without attention": (
        source_of(WITHOUT_ATTENTION),
        {"vLLM": "export", "TensorRT-LLM": "export", "SGLang": "no", "llama.cpp F16, Q8_0": "export"},
    ),
    "a layer without MLP": (source_of(WITHOUT_MLP), {"vLLM": "runs", "llama.cpp F16, Q8_0": "export"}),
    "biases of Qwen2": (source_of(ALIGNED, "qwen2"), {"vLLM": "runs", "TensorRT-LLM": "no"}),
    "norms of Qwen3": (source_of(ALIGNED, "qwen3"), {"vLLM": "runs", "llama.cpp F16, Q8_0": "no"}),
    "norms of Qwen3, tied": (source_of(ALIGNED, "qwen3", tie_word_embeddings=True), {"llama.cpp F16, Q8_0": "export"}),
    "uniform Qwen3": (source_of(((7, 11008),) * 2, "qwen3"), {"llama.cpp F16, Q8_0": "export", "vLLM": "runs"}),
}


@pytest.mark.parametrize("case", CASES)
def test_verdicts(case):
    source, expected = CASES[case]
    found = {verdict.engine.name: verdict.status for verdict in judge_all(source)}
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("case", CASES)
def test_every_no_says_why_and_every_yes_says_how(case):
    for verdict in judge_all(CASES[case][0]):
        assert verdict.findings if verdict.form is None else verdict.form.use
        assert all(form.export in ("", *TARGETS) for form in verdict.engine.forms)


def test_the_largest_group_that_divides_is_named():
    def group(shapes, **config):
        form = judge(engine_named("GPTQ, AWQ, int4 groups"), source_of(shapes, **config)).form
        return form and form.note.partition(";")[0]

    assert group(ALIGNED) == "in groups of 128"
    assert group(BY_64) == "in groups of 64"
    assert group(((8, 11008 + 32),) * 2) == "in groups of 32"
    assert group(ODD) is None


def test_a_column_count_that_no_flag_rounds_is_not_blamed_on_widths():
    verdict = judge(engine_named("GPTQ, AWQ, int4 groups"), source_of(ALIGNED, hidden_size=4096 + 16))
    assert verdict.status == "no"
    assert verdict.changes == ()
    assert "hidden size 4112" in verdict.findings[0].violation


def test_findings_name_the_first_layer_and_count_the_others():
    verdict = judge(engine_named("llama.cpp F16, Q8_0"), source_of((*ODD, *DENSE)))
    assert [finding.violation for finding in verdict.findings] == [
        "width 11001 in layer 0 and 1 more is no multiple of 32"
    ]
    assert verdict.changes == ("--mlp_multiple_of 32",)


def test_qwen2_with_fewer_heads_needs_another_implementation_in_vllm():
    use = judge(engine_named("vLLM"), source_of(((7, 11008),) * 2, "qwen2")).form.use
    assert "--model-impl transformers" in use
    assert "--model-impl" not in judge(engine_named("vLLM"), source_of(family="qwen2")).form.use


def test_rope_types_that_an_export_cannot_hold_are_named():
    source = source_of(WITHOUT_ATTENTION, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    for name in ("vLLM", "llama.cpp F16, Q8_0"):
        verdict = judge(engine_named(name), source)
        assert verdict.status == "no"
    assert [finding.violation for finding in verdict.findings] == ["'dynamic'"]


@pytest.mark.parametrize("case", CASES)
def test_following_the_advice_helps(case):
    """The same model in the suggested shapes has no finding left that a flag could mend."""
    source = CASES[case][0]
    for verdict in judge_all(source):
        if verdict.changes:
            followed = judge(verdict.engine, pruned_with(source, verdict.changes))
            assert not followed.changes, verdict.engine.name
            assert followed.form is not None


def pruned_with(source, changes):
    """What pruning with these flags gives, roughly: rounded widths, no empty blocks, equal layers."""
    text = " ".join(changes)
    shapes = source.shapes
    if "--allow_empty_blocks" in text or "--freeze_first_n_layers" in text:
        shapes = tuple(LayerShape(max(1, shape.num_kv_groups), max(256, shape.mlp_width)) for shape in shapes)
    for multiple in map(int, re.findall(r"--mlp_multiple_of (\d+)", text)):
        shapes = tuple(replace(shape, mlp_width=-(-shape.mlp_width // multiple) * multiple) for shape in shapes)
    config = dict(source.config)
    if "--shapes_for tensorrt" in text:
        shapes = tuple(replace(shape, num_kv_groups=7) for shape in shapes)
    if "--uniform" in text:
        largest = LayerShape(max(s.num_kv_groups for s in shapes), max(s.mlp_width for s in shapes))
        shapes, config["model_type"] = (largest,) * len(shapes), source.family.model_type
    return replace(source, shapes=shapes, config=config)


def test_suggested_flags_and_presets_exist():
    rules = [rule for engine in ENGINES for form in engine.forms for rule in (*form.needs, *form.wants)]
    flags = {flag for rule in rules for flag in re.findall(r"--(\w+)", rule.change)}
    assert {"uniform", "mlp_multiple_of"} <= flags
    assert flags <= {item.name for item in fields(PruneConfig)} | PruneConfig.PRESETS.keys()
    presets = {preset for rule in rules for preset in re.findall(r"--shapes_for (\w+)", rule.change)}
    presets |= {engine.preset for engine in ENGINES if engine.preset}
    assert presets <= SHAPE_PRESETS.keys()


def test_engines_of_an_export():
    assert [engine.name for engine in engines_that_read("mlx")] == ["MLX"]
    assert all(map(engines_that_read, TARGETS))


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("name", TINY)
def test_exports_write_what_verdicts_promise_and_refuse_the_rest(name, number, tokenizer, tmp_path):
    model = make_tiny(name)
    plan = list(extremes(model))[number]
    folder = tmp_path / "pruned"
    folder.mkdir()
    save_pruned(apply_plan(model, plan), tokenizer, folder, with_bin=False)
    source = read_source(folder)
    forms = {
        form.export
        for engine in ENGINES
        for form in (judge(engine, source).form, *judge(engine, source).others)
        if form
    }
    assert forms - {"", "gguf"} == {
        target for target in EXPORTS if target != "gguf" and writes(target, source, tmp_path)
    }
    # the byte tokenizer of these models has no form in GGUF; the model's own form decides
    assert ("gguf" in forms) == (not has_head_norms(source) or source.is_uniform or source.ties_embeddings)


def writes(target, source, folder):
    place = folder / target
    place.mkdir()
    try:
        EXPORTS[target](source, place, ExportOptions("model", self_check=False))
    except InputError:
        return False
    return True


def engine_named(name):
    return next(engine for engine in ENGINES if engine.name == name)
