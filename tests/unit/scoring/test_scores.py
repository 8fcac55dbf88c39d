"""Scores on disk: a round trip, and refusal of damaged files and of files of another model."""

import json
import math
from dataclasses import asdict, replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from conftest import make_tiny
from hgsp.data.calibration import Calibration
from hgsp.errors import InputError
from hgsp.models.blocks import LINEARS
from hgsp.models.decoder import Decoder
from hgsp.models.geometry import geometry_of
from hgsp.models.loaded import LoadedModel
from hgsp.scoring.groups import MLP, build_group_table
from hgsp.scoring.methods import METHODS
from hgsp.scoring.normalization import normalize
from hgsp.scoring.prior import prior_of
from hgsp.scoring.score import score_groups
from hgsp.scoring.score_model import score_model
from hgsp.scoring.scores import RankingOptions, Scores, weight_sample

PROVENANCE = {"base_model": "some/model", "dtype": "float32"}
TEXT = Calibration(torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(5)), "random", 0)


def loaded_as(model, dtype="float32"):
    return LoadedModel(Decoder(model), None, dtype)


def scores_of(model, method="taylor", with_influence=True):
    found = score_groups(Decoder(model), method, TEXT, with_influence=with_influence)
    loaded = loaded_as(model)
    provenance = PROVENANCE | {"importance_method": method, "weights": asdict(loaded.identity)}
    return Scores(found.by_layer, found.influence, weight_sample(loaded), provenance)


@pytest.fixture
def model():
    return make_tiny("qwen2-14q2kv")


@pytest.mark.parametrize("method", ["taylor", "flap"])  # with and without the share of the output projection
@pytest.mark.parametrize("with_influence", [True, False])
def test_scores_read_back_as_they_were_written(model, tmp_path, method, with_influence):
    written = scores_of(model, method, with_influence)
    written.write(tmp_path / "any name")
    read = Scores.read(tmp_path / "any name")
    assert [path.name for path in tmp_path.iterdir()] == ["any name"]
    assert read.provenance == written.provenance
    np.testing.assert_array_equal(read.weight_sample, written.weight_sample)
    for expected, got in zip(written.by_layer, read.by_layer, strict=True):
        assert got.keys() == expected.keys()
        assert ("mlp.output" in got) == (method == "taylor")
        for part, values in expected.items():
            assert got[part].dtype == np.float64
            np.testing.assert_array_equal(got[part], values)
    assert (read.influence is not None) == with_influence
    if with_influence:
        assert read.influence.measure == "cosine"
        for part in ("layer", "attention", "mlp"):
            np.testing.assert_array_equal(getattr(read.influence, part), getattr(written.influence, part))


def test_more_than_ten_layers_are_not_mixed_up(tmp_path):
    """The prefix of layer 1 is not that of layers 10 and 11."""
    by_layer = tuple({"attention": np.full(2, float(i)), "mlp": np.full(3, float(i))} for i in range(12))
    Scores(by_layer, None, np.zeros((12, 7, 16), np.float32), {}).write(tmp_path / "s.npz")
    for index, layer in enumerate(Scores.read(tmp_path / "s.npz").by_layer):
        assert {part: set(values) for part, values in layer.items()} == {"attention": {index}, "mlp": {index}}


def write_head(path, head):
    np.savez(path, head=np.array(json.dumps(head)), weight_sample=np.zeros((1, 7, 16), np.float32))


def flip(path, after, offset, bits):
    content = bytearray(path.read_bytes())
    content[content.index(after) + offset] ^= bits
    path.write_bytes(content)


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "empty": lambda path: path.write_bytes(b""),
    "some text": lambda path: path.write_text("layer,kind,group"),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one array": lambda path: (np.save(path.with_suffix(".npy"), np.zeros(3)), path.with_suffix(".npy").replace(path)),
    "another archive": lambda path: np.savez(path, weights=np.zeros(3)),
    "pickled objects": lambda path: np.savez(path, head=np.array([{"schema": 1}], dtype=object)),
    "a head that is a list": lambda path: write_head(path, [1]),
    "layers that are no number": lambda path: write_head(path, {"schema": 1, "num_layers": "1", "measure": None}),
    "no layers": lambda path: write_head(path, {"schema": 1, "num_layers": 1, "measure": None, "provenance": {}}),
    "a bit that says encrypted": lambda path: flip(path, b"PK\x01\x02", 8, 1),
    "a bit of the compression method": lambda path: flip(path, b"PK\x01\x02", 10, 1),
    "another schema": lambda path: write_head(path, {"schema": 2, "num_layers": 0, "measure": None, "provenance": {}}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_by_its_name(model, tmp_path, damage):
    path = tmp_path / "scores.npz"
    scores_of(model).write(path)
    DAMAGES[damage](path)
    with pytest.raises(InputError, match=r"scores\.npz.*score the model again"):
        Scores.read(path)


def test_a_changed_byte_is_noticed(model, tmp_path):
    """The checksums of the archive are verified."""
    path = tmp_path / "scores.npz"
    scores_of(model).write(path)
    flip(path, b"1.mlp.npy", 200, 1)
    with pytest.raises(InputError, match="CRC"):
        Scores.read(path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_same_model_is_recognised_in_any_dtype(model, dtype):
    """Scored in float32 and pruned in bfloat16, or the reverse."""
    scores, other = scores_of(model), make_tiny("qwen2-14q2kv").to(getattr(torch, dtype))
    scores.check_belongs_to(loaded_as(other, dtype))


STRANGERS = {
    "sizes: more layers": ({"num_hidden_layers": 4}, "other sizes"),
    "sizes: a wider MLP": ({"intermediate_size": 97}, "other sizes"),
    "sizes: more KV heads": ({"num_key_value_heads": 7}, "other sizes"),
    "weights: another seed": ({"seed": 1}, "other weights"),
}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_scores_of_another_model_are_refused(model, stranger):
    changes, complaint = STRANGERS[stranger]
    other = make_tiny("qwen2-14q2kv", **changes)
    with pytest.raises(InputError, match=rf"{complaint} \(some/model\)"):
        scores_of(model).check_belongs_to(loaded_as(other))


@pytest.mark.parametrize("name", ["model.layers.2.mlp.down_proj.weight", "model.norm.weight", "lm_head.weight"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_one_other_weight_is_noticed_wherever_it_is(model, name, dtype):
    scores = scores_of(model)
    model.get_parameter(name).data.view(-1)[-1] += 1
    with pytest.raises(InputError, match="other weights"):
        scores.check_belongs_to(loaded_as(model.to(getattr(torch, dtype)), dtype))


def test_what_two_runs_rounded_differently_is_not_taken_for_the_same(model):
    """Weights of float32, scored in bfloat16 and pruned in float16: nothing tells whether they are the same."""
    scores = scores_of(make_tiny("qwen2-14q2kv").to(torch.bfloat16))
    scores = replace(scores, provenance={**scores.provenance, "dtype": "bfloat16"})
    with pytest.raises(InputError, match="or weights that bfloat16 and float16 round differently"):
        scores.check_belongs_to(loaded_as(model.to(torch.float16), "float16"))


@pytest.mark.parametrize("linear", LINEARS)
@pytest.mark.parametrize("earlier", ["no hashes", "no hash of float16"])
def test_scores_of_earlier_versions_are_known_by_a_sample_of_every_linear(model, linear, earlier):
    scores, last = scores_of(model), model.model.layers[-1].get_submodule(linear)
    made, dtype = scores.provenance["weights"], "float32"
    if earlier == "no hashes":
        made = None
    else:
        made, dtype = {name: digest for name, digest in made.items() if name != "float16_sha256"}, "float16"
    scores = replace(scores, provenance={**scores.provenance, "weights": made})
    other = model.to(getattr(torch, dtype))
    scores.check_belongs_to(loaded_as(other, dtype))
    last.weight.data[0] *= 1.1
    with pytest.raises(InputError, match="other weights"):
        scores.check_belongs_to(loaded_as(other, dtype))


@pytest.mark.parametrize("tau", [None, 0.0, 1e-3, math.inf])
def test_the_table_multiplies_by_the_prior_only_above_temperature_zero(model, tau):
    scores, geometry = scores_of(model), geometry_of(model)
    plain, modes = scores.ranked(geometry, RankingOptions("none", 0.0, tau))
    assert modes == ("none",) * 3
    np.testing.assert_array_equal(plain.prior, 1)
    np.testing.assert_array_equal(plain.score, plain.importance / plain.cost)
    table, modes = scores.ranked(geometry, RankingOptions("none", 2.0, tau))
    prior_LK, expected_modes = prior_of(scores.influence, 2.0, tau)
    assert modes == tuple(expected_modes)
    np.testing.assert_array_equal(table.base_score, plain.score)
    np.testing.assert_array_equal(table.score, plain.score * prior_LK[table.layer, table.kind])
    assert set(modes) == {None: {"layer", "block"}, 0.0: {"block"}, math.inf: {"layer"}}.get(tau, set(expected_modes))


def test_a_prior_without_measured_influence_is_refused(model):
    scores = scores_of(model, with_influence=False)
    scores.ranked(geometry_of(model))
    with pytest.raises(InputError, match="scores made with --temperature 0"):
        scores.ranked(geometry_of(model), RankingOptions(temperature=0.5))


@pytest.mark.parametrize("method", METHODS)
def test_scores_are_normalized_as_their_method_asks_unless_told_otherwise(model, method):
    scores, geometry = scores_of(model, method), geometry_of(model)
    assert scores.method == method
    for name in ("auto", "none", "rank"):
        table, _ = scores.ranked(geometry, RankingOptions(name))
        base = normalize(scores.by_layer, geometry, METHODS[method].normalization if name == "auto" else name)
        np.testing.assert_array_equal(table.score, build_group_table(scores.by_layer, geometry, base).score)


def test_scores_of_no_known_method_need_a_normalization(model):
    scores = replace(scores_of(model), provenance=PROVENANCE)
    scores.ranked(geometry_of(model), RankingOptions("none"))
    with pytest.raises(InputError, match="got scores by None"):
        scores.ranked(geometry_of(model))


@pytest.mark.parametrize(("mlp", "attention"), [(0.5, 0.0), (0.0, -1.0), (0.5, 1.0)])
def test_depth_slopes_multiply_the_scores_of_their_kind(model, mlp, attention):
    scores, geometry = scores_of(model), geometry_of(model)
    flat, _ = scores.ranked(geometry)
    steep, _ = scores.ranked(geometry, RankingOptions(depth_slope=mlp, attention_slope=attention))
    factor = np.exp(np.where(flat.kind == MLP, mlp, attention) * np.linspace(-1, 1, 3)[flat.layer])
    np.testing.assert_allclose(steep.score, flat.score * factor, rtol=1e-14)


@pytest.mark.parametrize(
    "options",
    [
        {"normalization": "z-score"},
        {"temperature": -0.1},
        {"temperature": math.inf},
        {"temperature": math.nan},
        {"tau": -1.0},
        {"tau": math.nan},
        {"depth_slope": 11.0},
        {"depth_slope": math.nan},
        {"attention_slope": -11.0},
        {"attention_slope": math.nan},
    ],
    ids=str,
)
def test_ranking_options_out_of_range_are_refused(options):
    (name,) = options
    with pytest.raises(InputError, match=f"expected {name} to be"):
        RankingOptions(**options)


@pytest.mark.parametrize("layer_importance", [None, "cosine", "perplexity"])
def test_score_model_records_where_scores_come_from(model, layer_importance):
    loaded = LoadedModel(Decoder(model), None, "float32")
    scores = score_model(
        loaded, "fisher", TEXT, base_model="some/model", layer_importance=layer_importance, seed=7, labels="model"
    )
    assert scores.provenance == {
        "base_model": "some/model",
        "importance_method": "fisher",
        "calibration": TEXT.describe(),
        "labels": "model",
        "calibration_loss": None,
        "seed": 7,
        "dtype": "float32",
        "weights": asdict(loaded.identity),
    }
    assert (None if scores.influence is None else scores.influence.measure) == layer_importance
    scores.check_belongs_to(loaded_as(model))
    expected = score_groups(Decoder(model), "fisher", TEXT, seed=7, labels="model").by_layer
    for got, layer in zip(scores.by_layer, expected, strict=True):
        np.testing.assert_array_equal(got["mlp"], layer["mlp"])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"method": "tailor"}, "an importance method; got 'tailor'"),
        ({"labels": "mine"}, "labels from text or model"),
        ({"layer_importance": "angle"}, "a measure of influence"),
        ({"calibration": None}, "calibration text for taylor"),
        ({"method": "magnitude", "calibration": None, "layer_importance": "perplexity"}, "text for the influence"),
    ],
)
def test_invalid_scoring_arguments_are_refused(model, arguments, complaint):
    settings = {"method": "taylor", "calibration": TEXT, "base_model": "some/model"} | arguments
    with pytest.raises(InputError, match=complaint):
        score_model(LoadedModel(Decoder(model), None, "float32"), **settings)


def test_hidden_states_that_would_crowd_the_memory_go_to_disk(model, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr("hgsp.scoring.score_model.MAX_RESIDENT_HIDDEN_BYTES", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    loaded, long = (
        LoadedModel(Decoder(model), None, "float32"),
        Calibration(torch.randint(0, 256, (4, 64)), "random", 0),
    )
    with caplog.at_level("INFO"):
        score_model(loaded, "fisher", long, base_model="some/model")
    assert f"hidden states go to {tmp_path}" in caplog.text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
@pytest.mark.parametrize("method", ["taylor", "magnitude"])
def test_scoring_leaves_requires_grad_as_it_was(model, monkeypatch, method, error):
    wanted = {name: index % 2 == 0 for index, (name, _) in enumerate(model.named_parameters())}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(wanted[name])
    parameters = dict(model.named_parameters())
    if error:
        monkeypatch.setattr("hgsp.scoring.score.layer_importance", Mock(side_effect=error))
        with pytest.raises(error):
            score_groups(Decoder(model), method, TEXT)
    else:
        score_groups(Decoder(model), method, TEXT)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == wanted
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())


def test_scores_print_on_one_line(model):
    assert repr(scores_of(model)) == "Scores(taylor, 294 groups in 3 layers, cosine influence)"
    assert repr(scores_of(model, "flap", with_influence=False)) == "Scores(flap, 294 groups in 3 layers, no influence)"
