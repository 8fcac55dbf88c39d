"""Flags and defaults as the contract states them, and one clear line for every invalid value."""

import dataclasses
import math
import re

import pytest

from hgsp.console.flags import byte_count, parse
from hgsp.errors import InputError
from hgsp.pipeline.config import PruneConfig
from hgsp.pruning.names import SHAPE_PRESETS

REQUIRED = {"base_model": "some/model", "output_name": "MODEL/p20", "pruning_ratio": 0.2, "dataset": "builtin"}

#: The contract's table, by hand.
PROMISED = {
    "importance_method": "taylor",
    "dataset": "wikitext2",
    "nsamples": 128,
    "temperature": 1.0,
    "tau": None,
    "use_gradient_checkpointing": False,
    "freeze_first_n_layers": 0,
    "freeze_last_n_layers": 0,
    "finetune": False,
    "finetune_data_path": "yahma/alpaca-cleaned",
    "finetune_epochs": 3,
    "finetune_lr": 3e-4,
    "finetune_batch_size": 128,
    "finetune_micro_batch_size": 4,
    "lora_r": 8,
    "lora_alpha": 16,
    "skip_evaluation": False,
    "eval_tasks": "wikitext,c4",
    "device": None,
    "seed": 42,
    "dtype": "bfloat16",
    "data_dir": None,
    "overwrite": False,
    "dry_run": False,
    "no_bin": False,
    "results_dir": "results",
}


def config(**changes):
    return PruneConfig(**{**REQUIRED, **changes})


def parsed(*argv):
    base = ["--base_model", "m", "--output_name", "o", "--pruning_ratio", "0.2"]
    return parse(PruneConfig, [*base, *argv], prog="prog", description="")


@pytest.mark.parametrize("name", PROMISED)
def test_defaults_are_those_of_the_contract(name):
    assert getattr(parsed(), name) == PROMISED[name]


def test_epsilon_is_the_contracts_where_the_prior_is_on_and_off_where_it_is_off():
    """Temperature 0 is plain global pruning, which removes no layer whole."""
    assert config(temperature=1.0).recipe.collapse_epsilon == 0.15
    assert config(temperature=0.0).recipe.collapse_epsilon is None
    assert config(temperature=0.0, epsilon=0.4).recipe.collapse_epsilon == 0.4


def test_a_ratio_or_a_target_is_required():
    with pytest.raises(InputError, match="--pruning_ratio to be given, or one of --target_speedup"):
        parse(PruneConfig, ["--base_model", "m", "--output_name", "o"], prog="prog", description="")
    assert config(pruning_ratio=None, target_bytes=10**9).ratios == (None,)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4096", 4096), ("5GB", 5 * 10**9), ("64KiB", 65536), ("1.5g", 1_500_000_000), ("2 MiB", 2**21)],
)
def test_bytes_are_parsed_with_decimal_and_binary_prefixes(text, expected):
    assert byte_count(text) == expected


@pytest.mark.parametrize("text", ["GB", "5XB", "-3GB", "5 gallons"])
def test_other_forms_of_bytes_are_usage_errors(text):
    with pytest.raises(ValueError, match=re.escape(text)):
        byte_count(text)


@pytest.mark.parametrize(("given", "expected"), [(("auto",), None), (("128",), 128)])
def test_the_multiple_is_a_number_or_auto(given, expected):
    assert parsed("--mlp_multiple_of", *given).mlp_multiple_of == expected


@pytest.mark.parametrize("engine", SHAPE_PRESETS)
def test_presets_of_shapes_set_their_flags_beside_a_recipe(engine):
    config = parsed("--shapes_for", engine, "--recipe", "balanced")
    assert {name: getattr(config, name) for name in SHAPE_PRESETS[engine]} == SHAPE_PRESETS[engine]
    assert config.reconstruct == "lstsq"


@pytest.mark.parametrize("missing", ["--base_model", "--output_name"])
def test_required_flags_are_required(missing, capsys):
    argv = ["--base_model", "m", "--output_name", "o", "--pruning_ratio", "0.2"]
    at = argv.index(missing)
    with pytest.raises(SystemExit) as exit_:
        parse(PruneConfig, argv[:at] + argv[at + 2 :], prog="prog", description="")
    assert exit_.value.code == 2
    assert missing in capsys.readouterr().err


def test_a_flag_given_twice_takes_its_last_value():
    assert parsed("--temperature", "0.0", "--temperature", "1.0").temperature == 1.0
    assert parsed("--pruning_ratio", "0.3", "0.5").pruning_ratio == (0.3, 0.5)


def test_abbreviated_flags_are_refused():
    """A later flag with the same prefix would change the meaning of an old script."""
    with pytest.raises(SystemExit) as exit_:
        parsed("--temp", "0.5")
    assert exit_.value.code == 2


def test_tau_takes_inf():
    assert parsed("--tau", "inf").tau == math.inf


REFUSED = {
    "pruning_ratio": [-0.1, 1.0, math.nan, (0.2, 1.5), (0.2, 0.2)],
    "nsamples": [0, -1],
    "seq_len": [1],
    "batch_size": [0],
    "temperature": [-1.0, math.inf, math.nan],
    "tau": [-0.5, math.nan],
    "epsilon": [-0.1, 1.1, math.nan],
    "depth_slope": [-11.0, math.inf, math.nan],
    "attention_slope": [-11.0, math.inf, math.nan],
    "freeze_first_n_layers": [-1],
    "freeze_last_n_layers": [-1],
    "min_kv_groups": [0],
    "min_mlp_width": [0],
    "importance_method": ["best"],
    "score_normalization": ["best"],
    "layer_importance": ["best"],
    "dtype": ["int8"],
    "dataset": ["wikitext103"],
    "eval_tasks": ["wikitext,lambda"],
    "eval_seq_len": [1],
    "eval_max_windows": [-1],
    "output_name": ["", ".", "..", "a/../../b", "/abs", "a/", "a//b", "a/./b"],
    "finetune_lr": [0.0, math.nan],
    "finetune_epochs": [0],
    "finetune_batch_size": [0],
    "finetune_micro_batch_size": [0],
    "lora_r": [0],
    "lora_alpha": [0],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in REFUSED.items() for value in values])
def test_nonsense_is_refused_by_the_name_of_its_flag(name, value):
    """Sample counts of zero or less and unknown data sets are among the refused values."""
    with pytest.raises(InputError, match=f"--{name}") as refusal:
        config(**{name: value})
    assert "\n" not in str(refusal.value)


def test_a_slash_in_the_output_name_is_a_folder_and_several_ratios_get_their_percentage():
    one, several = config(), config(pruning_ratio=(0.1, 0.25, 0.07))
    assert one.output_name_for(0.2) == "MODEL/p20"
    assert [several.output_name_for(r) for r in several.pruning_ratio] == [
        "MODEL/p20_10",
        "MODEL/p20_25",
        "MODEL/p20_7",
    ]


@pytest.mark.parametrize(
    ("tasks", "texts"),
    [("wikitext,c4", ("wikitext2", "c4")), (" builtin , ", ("builtin",)), ("wikitext,wikitext2", ("wikitext2",))],
)
def test_evaluation_texts_are_listed_once_under_one_name(tasks, texts):
    assert config(eval_tasks=tasks).evaluation_texts == texts
    assert config(eval_tasks=tasks, skip_evaluation=True).evaluation_texts == ()


@pytest.mark.parametrize(
    ("method", "temperature", "needs"),
    [("taylor", 0, True), ("magnitude", 0, False), ("random", 0, False), ("magnitude", 1, True), ("wanda", 0, True)],
)
def test_text_is_read_only_where_something_reads_it(method, temperature, needs):
    assert config(importance_method=method, temperature=temperature).needs_calibration is needs


def test_every_flag_explains_itself():
    assert all(item.metadata["help"] for item in dataclasses.fields(PruneConfig))


def test_the_parser_itself_refuses_what_is_no_number():
    with pytest.raises(SystemExit) as exit_:
        parsed("--nsamples", "many")
    assert exit_.value.code == 2


def test_a_denominator_needs_a_ratio_and_a_known_name():
    assert (parsed().ratio_of, parsed("--ratio_of", "decoder").ratio_of) == ("all", "decoder")
    with pytest.raises(InputError, match="--ratio_of to be one of all, decoder"):
        config(ratio_of="layers")
    with pytest.raises(InputError, match="--ratio_of to be given together with --pruning_ratio"):
        config(ratio_of="decoder", pruning_ratio=None, target_bytes=10**9)
