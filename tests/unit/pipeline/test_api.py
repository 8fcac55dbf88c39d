"""The Python interface: ten lines give the command's result, and leave the user's model and logger alone."""

import copy
import dataclasses
import json
import logging
import runpy
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

import hgsp
from conftest import REPOSITORY, make_tiny
from hgsp.cli import prune as prune_command
from hgsp.errors import InputError
from hgsp.scoring.methods import METHODS
from pruning import tensors_of

#: Flags of the command and arguments in Python that ask for the same.
NSAMPLES, SEQ_LEN = 24, 32
FLAGS = {
    "--pruning_ratio": "0.2",
    "--temperature": "0.0",
    "--dataset": "builtin",
    "--nsamples": str(NSAMPLES),
    "--seq_len": str(SEQ_LEN),
    "--dtype": "float32",
    "--device": "cpu",
    "--min_mlp_width": "8",
}
SIZES = hgsp.ShapeRules(1, 8)


@pytest.fixture
def folder(saved):
    return saved(make_tiny("llama-8q4kv"))


@pytest.fixture
def loaded(folder):
    """The model, its tokenizer, and calibration text."""
    model, tokenizer = hgsp.load(str(folder), dtype="float32", device="cpu")
    return model, tokenizer, hgsp.calibration("builtin", tokenizer, num_sequences=NSAMPLES, seq_len=SEQ_LEN)


@pytest.fixture
def command(folder, tmp_path):
    """``command(*flags)`` runs the pruning command and returns its result folder."""

    def run(*flags):
        settings = [part for pair in FLAGS.items() for part in pair]
        names = ["--base_model", str(folder), "--results_dir", str(tmp_path / "results"), "--output_name", "command"]
        assert prune_command.main([*names, *settings, "--skip_evaluation", "--overwrite", *flags]) == 0
        return tmp_path / "results" / "command"

    return run


def test_ten_lines_give_a_folder_that_transformers_loads(folder, tmp_path, tokens):
    model, tokenizer = hgsp.load(str(folder), dtype="float32", device="cpu")
    text = hgsp.calibration("builtin", tokenizer, num_sequences=8, seq_len=32)
    scores = hgsp.score(model, text, method="fisher")
    pruned = hgsp.prune(model, scores.select(ratio=0.2), reconstruct=text)
    hgsp.save(pruned, tokenizer, tmp_path / "pruned")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    assert torch.equal(again(tokens).logits, pruned(tokens).logits)
    assert torch.equal(hgsp.load_pruned(tmp_path / "pruned")(tokens).logits, pruned(tokens).logits)
    removed = 1 - pruned.num_parameters() / model.num_parameters()
    assert 0.19 < removed <= 0.2


@pytest.mark.parametrize("method", METHODS)
def test_the_plan_of_every_method_is_the_command_s(loaded, command, method):
    model, _, text = loaded
    plan = hgsp.score(model, text, method=method).select(0.2, shape_rules=SIZES)
    written = json.loads((command("--importance_method", method) / "prune_plan.json").read_text())
    kept = [{"kv_groups": list(k.kv_groups), "mlp_channels": list(k.mlp_channels)} for k in plan.layers]
    assert kept == written["layers"]


def test_the_prior_shapes_the_plan_as_in_the_command(loaded, command):
    model, _, text = loaded
    plan = hgsp.score(model, text).select(0.2, temperature=1.0, shape_rules=SIZES)
    written = json.loads((command("--temperature", "1") / "prune_plan.json").read_text())
    assert [list(keep.mlp_channels) for keep in plan.layers] == [layer["mlp_channels"] for layer in written["layers"]]


@pytest.mark.parametrize("method", ["lstsq", "blocks", "bias"])
def test_reconstructed_weights_are_the_command_s_to_the_last_bit(loaded, command, tmp_path, method):
    model, tokenizer, text = loaded
    plan = hgsp.score(model, text, method="fisher").select(0.2, shape_rules=SIZES)
    hgsp.save(hgsp.prune(model, plan, reconstruct=text, method=method), tokenizer, tmp_path / "python")
    flags = ("--importance_method", "fisher", "--reconstruct", method, "--reconstruct_nsamples", str(NSAMPLES))
    expected, found = tensors_of(command(*flags)), tensors_of(tmp_path / "python")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("reconstruct", [False, True])
def test_the_dense_model_stays_as_it_was(loaded, reconstruct):
    """Weights, requires_grad, training mode and dtype; two sizes can be made from it."""
    model, _, text = loaded
    model.train()
    model.model.layers[1].requires_grad_(False)
    before = copy.deepcopy(model)
    scores = hgsp.score(model, text, method="taylor")
    first = hgsp.prune(model, scores.select(0.1), reconstruct=text if reconstruct else None)
    second = hgsp.prune(model, scores.select(0.3), reconstruct=text if reconstruct else None)
    assert first.num_parameters() > second.num_parameters()
    assert model.training
    for (name, own), (_, was) in zip(model.named_parameters(), before.named_parameters(), strict=True):
        assert torch.equal(own, was), name
        assert own.requires_grad == was.requires_grad, name
    with torch.no_grad():
        first.get_input_embeddings().weight.zero_()
    assert not torch.equal(model.get_input_embeddings().weight, first.get_input_embeddings().weight)


def test_inplace_gives_the_same_model_and_consumes_the_dense_one(loaded, tokens):
    model, _, text = loaded
    plan = hgsp.score(model, text).select(0.2)
    expected = hgsp.prune(model, plan)(tokens).logits
    assert torch.equal(hgsp.prune(model, plan, inplace=True)(tokens).logits, expected)
    assert model.model.layers[0].mlp.up_proj.weight.is_meta


def test_flags_of_requires_grad_survive_a_failing_score(loaded):
    model, _, text = loaded
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(hgsp.NumericalError):
        hgsp.score(model, text)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_logger_is_left_as_it_was(loaded, command, tmp_path):
    logger = logging.getLogger("hgsp")
    before = (logger.level, logger.propagate, list(logger.handlers), logger.disabled)
    command()
    model, tokenizer, text = loaded
    pruned = hgsp.prune(model, hgsp.score(model, text).select(0.2), reconstruct=text)
    hgsp.save(pruned, tokenizer, tmp_path / "pruned")
    assert (logger.level, logger.propagate, list(logger.handlers), logger.disabled) == before


def test_scores_can_be_saved_and_belong_to_their_model(loaded, tmp_path):
    model, _, text = loaded
    scores = hgsp.score(model, text, method="wanda")
    scores.save(tmp_path / "scores.npz")
    assert hgsp.Scores.load(tmp_path / "scores.npz", model).select(0.3).layers == scores.select(0.3).layers
    with pytest.raises(InputError, match="other weights"):
        hgsp.Scores.load(tmp_path / "scores.npz", make_tiny("llama-8q4kv", seed=1))


def test_a_ratio_out_of_reach_is_refused(loaded):
    model, _, _ = loaded
    with pytest.raises(InputError, match="a ratio of at most"):
        hgsp.score(model, method="magnitude").select(0.99)


def test_a_method_that_needs_text_says_so(loaded):
    with pytest.raises(InputError, match="calibration text"):
        hgsp.score(loaded[0], method="wanda")


def test_text_with_a_token_without_an_embedding_is_refused(loaded):
    model, _, text = loaded
    ids = text.input_ids.clone()
    ids[3, 5] = 300
    foreign = dataclasses.replace(text, input_ids=ids)
    with pytest.raises(InputError, match="id 300"):
        hgsp.score(model, foreign)
    with pytest.raises(InputError, match="id 300"):
        hgsp.prune(model, hgsp.score(model, text).select(0.2), reconstruct=foreign)


def test_save_replaces_a_model_only_when_told_to_and_nothing_else_ever(loaded, tmp_path):
    model, tokenizer, _ = loaded
    hgsp.save(model, tokenizer, tmp_path / "model")
    with pytest.raises(InputError, match="exists"):
        hgsp.save(model, tokenizer, tmp_path / "model")
    hgsp.save(model, tokenizer, tmp_path / "model", overwrite=True, with_bin=True)
    assert (tmp_path / "model" / "pruned_model.bin").exists()
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match=r"config\.json"):
        hgsp.save(model, tokenizer, tmp_path / "other", overwrite=True)


def test_reprs_fit_a_line(loaded):
    model, _, text = loaded
    scores = hgsp.score(model, text)
    for item in (text, scores, scores.groups, scores.select(0.2)):
        assert len(repr(item)) < 200
        assert "\n" not in repr(item)
    assert scores._repr_html_().count("<tr>") == 1 + scores.geometry.num_layers


def test_a_plan_prints_as_a_table_and_draws_itself(loaded):
    from matplotlib.figure import Figure

    model, _, text = loaded
    plan = hgsp.score(model, text).select(0.2)
    assert "<table" in plan._repr_html_()
    assert isinstance(plan.plot(), Figure)
    assert len(str(plan).splitlines()) > len(plan.layers)


def test_importing_is_cheap_and_names_are_listed():
    code = (
        "import sys, hgsp\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert set(hgsp.__all__) <= set(dir(hgsp))\n"
        "assert all(getattr(hgsp, name).__doc__ for name in hgsp.__all__)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'prunes'"):
        hgsp.prunes  # noqa: B018


def test_the_example_runs(folder, tmp_path, capsys):
    main = runpy.run_path(str(REPOSITORY / "examples" / "several_sizes.py"))["main"]
    settings = ["--text", "builtin", "--num_sequences", "8", "--seq_len", "32", "--output", str(tmp_path / "small")]
    main(["--model", str(folder), *settings])
    assert capsys.readouterr().out
    assert [len(list(tmp_path.glob(f"small-{percent}/model.safetensors"))) for percent in (10, 20, 30)] == [1, 1, 1]


def test_a_ratio_of_the_decoder_selects_what_the_matching_ratio_of_all_does(loaded):
    model, _, text = loaded
    scores = hgsp.score(model, text, method="taylor")
    geometry = scores.geometry
    of_decoder = scores.select(0.2, ratio_of="decoder", shape_rules=SIZES)
    of_all = scores.select(0.2 * geometry.decoder_params / geometry.total_params, shape_rules=SIZES)
    assert of_decoder.layers == of_all.layers
    assert of_decoder.layers != scores.select(0.2, shape_rules=SIZES).layers
    with pytest.raises(InputError, match="ratio_of to be one of all, decoder"):
        scores.select(0.2, ratio_of="layers")
