"""Command lines and settings files become options: laws of spelling, precedence and repetition, and refusals."""

import dataclasses
import difflib
import json
import os
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hgsp.cli.profile import ProfileConfig
from hgsp.console.flags import given_settings, parse
from hgsp.console.nearest import nearest
from hgsp.console.parser import with_underscores
from hgsp.console.settings_file import command_line, write_settings
from hgsp.errors import InputError
from hgsp.models.hub import with_revision
from hgsp.pipeline.config import CutConfig, PruneConfig
from hgsp.pipeline.recovery_config import RecoveryConfig

REQUIRED = ["--base_model", "m", "--output_name", "o", "--pruning_ratio", "0.2"]
FLAGS = [item.name for item in dataclasses.fields(PruneConfig)]
WORDS = st.text(string.ascii_letters + string.digits + "-_=.", min_size=1).filter(lambda word: word[0] not in "-=")
#: Settings that are valid together, whatever their values.
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "pruning_ratio": st.lists(st.floats(0, 0.99), min_size=1, max_size=3, unique=True).map(tuple),
        "temperature": st.floats(0, 1e6),
        "tau": st.one_of(st.floats(0, 1e6), st.just(float("inf"))),
        "epsilon": st.floats(0, 1),
        "depth_slope": st.floats(-10, 10),
        "attention_slope": st.floats(-10, 10),
        "finetune_lr": st.floats(1e-12, 1e3),
        "uniform": st.booleans(),
        "finetune": st.booleans(),
        "results_dir": WORDS,
        "data_dir": st.one_of(st.none(), WORDS),
        "mlp_multiple_of": st.one_of(st.none(), st.integers(1, 4096)),
        "importance_method": st.sampled_from(["taylor", "fisher", "magnitude"]),
    },
)


def prune(*argv):
    return parse(PruneConfig, [*REQUIRED, *map(str, argv)], prog="hgsp prune", description="")


def refusal(capsys, *argv, options=PruneConfig):
    """The one line that a usage error leaves."""
    with pytest.raises(SystemExit) as stop:
        parse(options, list(argv), prog="hgsp prune", description="")
    captured = capsys.readouterr()
    assert (stop.value.code, captured.out, captured.err.count("\n")) == (2, "", 1)
    assert captured.err.startswith("error: expected ")
    return captured.err


@given(name=st.sampled_from(FLAGS), dashes=st.lists(st.booleans(), min_size=6, max_size=6))
def test_every_mixture_of_dashes_and_underscores_names_the_same_flag(name, dashes):
    parts = name.split("_")
    mixed = parts[0] + "".join(("-" if dash else "_") + part for dash, part in zip(dashes, parts[1:], strict=False))
    assert with_underscores(f"--{mixed}") == f"--{name}"
    assert with_underscores(f"--{mixed}=a-b_c") == f"--{name}=a-b_c"


@settings(max_examples=30)
@given(value=WORDS, number=st.floats(-10, 10).map(lambda number: round(number, 3)))
def test_values_are_taken_as_they_are(value, number):
    assert prune("--results-dir", value).results_dir == value
    assert prune(f"--results-dir={value}").results_dir == value
    assert prune("--depth-slope", f"{number:.3f}").depth_slope == number


@settings(max_examples=30)
@given(values=st.lists(st.floats(0, 9), min_size=1, max_size=4), dash=st.lists(st.booleans(), min_size=4, max_size=4))
def test_the_last_of_repeated_flags_counts_however_it_is_spelled(values, dash):
    names = ["--finetune-lr" if dashed else "--finetune_lr" for dashed in dash]
    argv = [word for name, value in zip(names, values, strict=False) for word in (name, value + 1)]
    assert prune(*argv).finetune_lr == values[-1] + 1


def likeness(known, wrong):
    return difflib.SequenceMatcher(None, known, wrong).ratio()


@given(data=st.data(), name=st.sampled_from([name for name in FLAGS if len(name) >= 5]))
def test_one_wrong_letter_still_proposes_a_flag_as_near(data, name):
    at = data.draw(st.integers(0, len(name) - 1))
    letter = data.draw(st.sampled_from(string.ascii_lowercase))
    wrong = data.draw(st.sampled_from([name[:at] + name[at + 1 :], name[:at] + letter + name[at:]]))
    [proposed] = nearest(wrong, FLAGS)
    assert likeness(proposed, wrong) >= likeness(name, wrong) > 0.6


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (("--temprature", "0"), "got --temprature; did you mean --temperature?"),
        (("--method", "taylor"), "did you mean --importance_method?"),
        (("--importance-methd=taylor",), "did you mean --importance_method?"),
        (("--lr", "1"), "did you mean --finetune_lr?"),
        (("--importance_method", "tylor"), "got 'tylor'; did you mean taylor?"),
        (("--recipe", "balancd"), "did you mean balanced?"),
        (("--nsamples", "many"), "expected --nsamples to be a whole number; got 'many'"),
        (("--tau",), "expected a value after --tau"),
        (("--overwrite=1",), "expected --overwrite without a value"),
        (("--no_such_thing",), "see hgsp prune --help"),
        (("--seed", "1", "word"), "expected no further argument; got 'word'"),
    ],
)
def test_a_usage_error_is_one_line_with_the_nearest_name(capsys, argv, named):
    assert named in refusal(capsys, *REQUIRED, *argv)


def test_a_mistyped_flag_is_named_before_the_required_one_that_it_stands_for(capsys):
    line = refusal(capsys, "--base_modle", "m", "--output_name", "o", "--pruning_ratio", "0.2")
    assert "did you mean --base_model?" in line
    assert "expected --scores" in refusal(capsys, *REQUIRED, options=CutConfig)


def test_values_of_unknown_flags_are_not_repeated(capsys):
    """It may be a token."""
    assert "hf_secret" not in refusal(capsys, *REQUIRED, "--tokn", "hf_secret")
    assert "hf_secret" not in refusal(capsys, *REQUIRED, "--tokn=hf_secret")


@settings(max_examples=30)  # each builds a parser of sixty flags
@given(chosen=SETTINGS)
def test_a_run_is_repeated_from_the_settings_written_beside_it(tmp_path_factory, chosen):
    config = PruneConfig(**({"base_model": "m", "output_name": "o", "pruning_ratio": 0.2} | chosen))
    file = tmp_path_factory.mktemp("run") / "run.yaml"
    write_settings(config, file, "hgsp prune")
    assert parse(PruneConfig, ["--config", str(file)], prog=None, description="") == config


def test_what_belongs_to_one_run_alone_is_not_written(tmp_path):
    write_settings(prune("--overwrite", "--dry_run"), tmp_path / "run.yaml", "hgsp prune")
    again = parse(PruneConfig, ["--config", str(tmp_path / "run.yaml")], prog=None, description="")
    assert (again.overwrite, again.dry_run) == (False, False)


def test_the_command_line_takes_precedence_over_the_file_and_both_over_their_presets(tmp_path):
    file = tmp_path / "settings.json"
    settings = {"recipe": "best", "nsamples": 7, "search": 2, "search-nsamples": 5, "finetune": True, "tau": None}
    file.write_text(json.dumps(settings))
    config = prune("--config", file)
    assert (config.nsamples, config.reconstruct_nsamples) == (7, 512)
    assert (config.search, config.search_nsamples, config.finetune) == (2, 5, True)
    assert prune("--config", file, "--nsamples", 9).nsamples == 9
    assert prune("--nsamples", 9, "--config", file).nsamples == 9
    assert not prune("--config", file, "--no_finetune").finetune
    fast = prune("--recipe", "fast", "--config", file, "--search_nsamples", 6)
    assert (fast.importance_method, fast.nsamples) == ("fisher", 7)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("temprature: 0", "got 'temprature'; did you mean temperature?"),
        ("- temperature", "to map names of flags to values"),
        ("finetune: 1", "true or false as finetune; got 1"),
        ("dataset: [c4]", "a single value as dataset"),
        ("nsamples: yes", "a single value as nsamples"),
        ("pruning_ratio: {a: 1}", "a value or a list as pruning_ratio"),
        ("a: [", "a readable YAML or JSON file"),
    ],
)
def test_an_unusable_file_is_refused(tmp_path, text, named):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(InputError, match="--config") as refused:
        prune("--config", tmp_path / "run.yaml")
    assert named in str(refused.value)
    with pytest.raises(InputError, match="no such file"):
        prune("--config", tmp_path / "none.yaml")


def test_wrong_values_in_a_file_are_refused_like_flags(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("importance_method: tylor\n")
    assert "did you mean taylor?" in refusal(capsys, *REQUIRED, "--config", str(tmp_path / "run.yaml"))


def test_an_empty_file_changes_nothing(tmp_path):
    (tmp_path / "run.yaml").write_text("# nothing\n")
    assert prune("--config", tmp_path / "run.yaml") == prune()


def test_a_positional_argument_can_come_from_the_file_and_is_replaced(tmp_path):
    file = tmp_path / "run.yaml"
    first = parse(ProfileConfig, ["a/model", "--output", "o", "--batch_sizes", "1", "2"], prog=None, description="")
    write_settings(first, file, "hgsp profile")
    assert parse(ProfileConfig, ["--config", str(file)], prog=None, description="") == first
    other = parse(ProfileConfig, ["b/model", "--config", str(file)], prog=None, description="")
    assert other == dataclasses.replace(first, model="b/model")


def test_only_given_settings_are_found():
    given_here = given_settings(PruneConfig, ["--recipe", "fast", "--nsamples", "3", "--overwrite"], "hgsp prune")
    assert given_here == {"importance_method": "fisher", "temperature": 0.0, "nsamples": 3, "overwrite": True}


def test_a_token_goes_to_its_variable_and_nowhere_else(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "before")
    arguments = [*REQUIRED, "--token", "hf_secret", "--nsamples", "3"]
    config = parse(PruneConfig, arguments, prog="hgsp prune", description="")
    assert os.environ["HF_TOKEN"] == "hf_secret"
    assert "hf_secret" not in repr(config)
    recorded = command_line("hgsp prune", arguments, config)
    assert recorded == "hgsp prune --base_model m --output_name o --pruning_ratio 0.2 --nsamples 3"
    assert "hf_secret" not in command_line("hgsp prune", [*REQUIRED, "--token=hf_secret"], config)
    write_settings(config, tmp_path / "run.yaml", recorded)
    assert "token" not in (tmp_path / "run.yaml").read_text()


def test_the_command_of_a_run_from_a_file_needs_no_file(tmp_path):
    (tmp_path / "run.yaml").write_text("nsamples: 3\ntau: .inf\n")
    arguments = [*REQUIRED, "--config", str(tmp_path / "run.yaml")]
    config = parse(PruneConfig, arguments, prog=None, description="")
    recorded = command_line("hgsp prune", arguments, config).split()
    (tmp_path / "run.yaml").unlink()
    assert parse(PruneConfig, recorded[2:], prog=None, description="") == config


def test_a_revision_belongs_to_the_hub_ids_without_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local").mkdir()
    assert prune("--base_model", "a/b", "--revision", "v1").base_model == "a/b@v1"
    flags = ["--pruned_model", "local", "--output_dir", "o", "--distill_from", "a/b@v2", "--base_model", "a/b"]
    config = parse(RecoveryConfig, [*flags, "--revision", "refs/pr/1"], prog=None, description="")
    assert (config.pruned_model, config.distill_from, config.base_model) == ("local", "a/b@v2", "a/b@refs/pr/1")
    with pytest.raises(InputError, match="--revision to be given with a model named by hub id"):
        prune("--base_model", "local", "--revision", "v1")
    assert with_revision("a/b@refs/pr/1") == ("a/b", {"revision": "refs/pr/1"})
    assert with_revision("a/b") == ("a/b", {})
    (tmp_path / "odd@name").mkdir()
    assert with_revision("odd@name") == ("odd@name", {})
