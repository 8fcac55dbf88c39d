"""One target per parser: the files to begin with, how to change them, and the commands' own code that reads them."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerState

from hard.fuzzing import mutate, seeds
from hgsp.cli.main import COMMANDS, options_of
from hgsp.console.flags import parse
from hgsp.console.settings_file import as_arguments, read_settings
from hgsp.console.state_files import MARKER, _sha256, read_state
from hgsp.costs.latency import LatencyTable
from hgsp.data.rows import text_rows
from hgsp.errors import InputError
from hgsp.evaluation import reporting
from hgsp.evaluation.results import Results
from hgsp.evaluation.tables import comparisons_as_dicts, markdown, terminal_table
from hgsp.models.checkpoint import config_of, load_pruned, load_tokenizer_of
from hgsp.models.geometry import geometry_of
from hgsp.models.loading import inspect_model
from hgsp.models.tokenizers import load_tokenizer
from hgsp.models.weight_files import open_weights, weight_files
from hgsp.pipeline.config import PruneConfig
from hgsp.pipeline.recovery_report import read_pruning_report
from hgsp.pruning.plan import PrunePlan
from hgsp.pruning.surgery import pruned_skeleton
from hgsp.reconstruction.resume import ResumeState
from hgsp.recovery.instructions import load_rows, passage_of
from hgsp.recovery.resume import check_content, check_work_dir
from hgsp.recovery.trainer_states import last_complete_state
from hgsp.report.content import LeftOut
from hgsp.report.page import as_html, as_markdown, page_of
from hgsp.report.sources import read_group_table, read_losses, read_sources
from hgsp.scoring.scores import RankingOptions, Scores
from hgsp.search.search import SearchState
from hgsp.study import collect, tables

Run = Callable[[bytes], Any]


@dataclass(frozen=True)
class Target:
    """A parser under test.

    Args:
        prepare: makes a folder ready and returns the seeds and the function that reads one mutated file.
        executions: made by the default tests; fewer where one takes longer than a millisecond.
    """

    name: str
    prepare: Callable[[Path], tuple[Sequence[bytes], Run]]
    mutate: mutate.Mutation = mutate.mutated_json
    executions: int = 300


def _refuse(reason: str) -> InputError:
    return InputError(expected="a file in use", got=reason, remedy="none")


def _plan(folder: Path) -> tuple[Sequence[bytes], Run]:
    model, file = seeds.tiny_model(), folder / "prune_plan.json"
    geometry = geometry_of(model)

    def run(content: bytes) -> None:
        file.write_bytes(content)
        plan = PrunePlan.read_json(file)
        str(plan)
        if random_share(content, 50):
            pruned_skeleton(model.config, plan, geometry)

    return [seeds.plan(folder)], run


def random_share(content: bytes, one_in: int) -> bool:
    """Return whether a costly step is done for this content: the same answer for the same bytes."""
    return sum(content[:200]) % one_in == 0


def _scores(folder: Path) -> tuple[Sequence[bytes], Run]:
    geometry, file = geometry_of(seeds.tiny_model()), folder / "scores.npz"

    def run(content: bytes) -> None:
        file.write_bytes(content)
        scores = Scores.read(file)
        repr(scores)
        scores.check_sizes(geometry)
        for temperature in (0.0, 1.0)[: 1 + (scores.influence is not None)]:
            scores.ranked(geometry, RankingOptions(temperature=temperature))

    return seeds.scores(folder), run


def _states(folder: Path) -> tuple[Sequence[bytes], Run]:
    def run(content: bytes) -> None:
        shutil.rmtree(folder / "state", ignore_errors=True)
        (folder / "state").mkdir()
        if content.startswith(json.dumps({MARKER: "reconstruction"})[:-1].encode()):
            (folder / "state" / "finished.json").write_bytes(content)
            ResumeState(folder / "state", "f").fits(0)
        elif content.startswith(json.dumps({MARKER: "training"})[:-1].encode()):
            for name in ("settings.json", "content.json"):
                (folder / "state" / name).write_bytes(content)
            check_content(folder / "state", {"rows": "0"}, resume=True)
            check_work_dir(folder / "state", {"lora_r": 8}, resume=True, overwrite=False)
        else:
            (folder / "state" / "search.json").write_bytes(content)
            state = read_state(folder / "state" / "search.json", "search", SearchState)
            if state is None or not state.fits(2, ("a", "b")):
                raise _refuse("damaged state, set aside")
            np.exp(np.array(state.log_factors)) * np.ones((2, 2))
            if state.divergences:
                min(state.lowest, float(state.has_converged))

    return seeds.states(folder), run


def _trainer_state(folder: Path) -> tuple[Sequence[bytes], Run]:
    place = seeds.write_trainer_files(folder)

    def run(content: bytes) -> None:
        if not place.exists():
            place.with_name(f"{place.name}.damaged").rename(place)
        (place / "trainer_state.json").write_bytes(content)
        state = last_complete_state(folder)
        if state is None:
            raise _refuse("damaged state, set aside")
        TrainerState.load_from_json(str(state / "trainer_state.json"))

    return [seeds.trainer_state(folder)], run


def _results(folder: Path) -> tuple[Sequence[bytes], Run]:
    seed, file = seeds.results(folder), folder / "results.json"

    def run(content: bytes) -> None:
        file.write_bytes(content)
        results = Results.open(folder)
        comparisons_as_dicts(results)
        markdown(results, "title")
        list(reporting.perplexity_pairs(results.results, {}))
        reporting.same_corpus_warnings(results.results, {"scoring": {"calibration": {"texts": ["c4"], "source": "c4"}}})
        reporting.harm_warnings(results.results)
        reporting.busy_warnings(results.results)
        if random_share(content, 20):
            terminal_table(results, "title")
            results.enter("pruned", "models/pruned", "pruned-weights")
            results.write({})

    return [seed], run


def _analysis(folder: Path) -> tuple[Sequence[bytes], Run]:
    names = ("pruning_analysis.json", "recovery_analysis.json", "results.json")

    def run(content: bytes) -> None:
        for name in names:
            (folder / name).unlink(missing_ok=True)
        kind = 1 if b'"pruned_model"' in content[:300] else 2 if b'"results"' in content[:600] else 0
        (folder / names[kind]).write_bytes(content)
        with contextlib.suppress(InputError):
            read_pruning_report(str(folder))
        found, skipped = collect.collect([folder])
        if found:
            tables.to_csv(found)
            tables.to_markdown(found, skipped)
            tables.to_latex(found)
        page = page_of(read_sources(folder))
        if random_share(content, 20):
            as_html(page)
            as_markdown(page)

    return seeds.analysis(folder), run


def _tables(folder: Path) -> tuple[Sequence[bytes], Run]:
    def run(content: bytes) -> None:
        name, read = (
            ("loss_curve.csv", read_losses)
            if content.startswith(b"step")
            else ("global_group_table.csv", read_group_table)
        )
        (folder / name).write_bytes(content)
        try:
            read(folder)
        except LeftOut as reason:
            raise _refuse(str(reason)) from reason

    return seeds.tables(folder), run


def _latency(folder: Path) -> tuple[Sequence[bytes], Run]:
    geometry, file = geometry_of(seeds.tiny_model()), folder / "latency.json"

    def run(content: bytes) -> None:
        file.write_bytes(content)
        table = LatencyTable.read(file)
        table.check(geometry)
        workload = table.default_workload
        table.marginal_seconds(geometry.shapes, workload)
        table.seconds(geometry.shapes, workload)

    return [seeds.latency(folder)], run


def _rows(suffix: str, seed: bytes) -> Callable[[Path], tuple[Sequence[bytes], Run]]:
    def prepare(folder: Path) -> tuple[Sequence[bytes], Run]:
        file, tokenizer = folder / f"rows{suffix}", seeds.make_tokenizer()

        def run(content: bytes) -> None:
            file.write_bytes(content)
            if suffix == ".txt":
                list(text_rows(file, None))
                return
            for row in load_rows(str(file)):
                passage_of(row, tokenizer)

        return [seed], run

    return prepare


def _settings(folder: Path) -> tuple[Sequence[bytes], Run]:
    text = b"base_model: tiny\npruning_ratio: 0.2\noverwrite: true\neval_tasks: c4,ptb\nseed: 7\nmin_kv_groups: 1\n"
    known = [*PruneConfig.__dataclass_fields__]

    def run(content: bytes) -> None:
        suffix = ".json" if content.startswith(b"{") else ".yaml"
        file = folder / f"run{suffix}"
        file.write_bytes(content)
        as_arguments(PruneConfig, read_settings(file, known), file)

    return [text, json.dumps({"base_model": "tiny", "pruning_ratio": 0.2, "overwrite": True}).encode()], run


def _command_line(folder: Path) -> tuple[Sequence[bytes], Run]:
    lines = (
        ["prune", "--base_model", "m", "--output_name", "n", "--pruning_ratio", "0.2", "--dataset", "c4"],
        ["finetune", "--pruned_model", "m", "--output_dir", "o", "--num_epochs", "2", "--learning_rate", "1e-4"],
        ["evaluate", "--model_path", "m", "--tasks", "c4,piqa", "--seq_len", "64"],
        ["study", "--smoke", "--results_dir", "r", "--devices", "cpu,cpu"],
        ["export", "m", "--to", "gguf"],
        ["profile", "m", "--output", "t.json", "--batch_sizes", "1", "4"],
        ["summarize", ".", "/", "--output", "c"],
    )

    def run(content: bytes) -> None:
        try:
            words = json.loads(content)
        except ValueError as error:  # no words at all, or words that were cut
            raise _refuse("no words") from error
        if not isinstance(words, list) or not words or words[0] not in COMMANDS or words[0] == "doctor":
            raise _refuse("no command")
        arguments = [str(word) for word in words[1:]]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                parse(options_of(str(words[0])), arguments, prog="hgsp", description="")
            except SystemExit as error:
                raise _refuse(f"exit code {error.code}") from error

    return [json.dumps(words).encode() for words in lines], run


def _config(folder: Path) -> tuple[Sequence[bytes], Run]:
    place = seeds.dense_folder(folder / "dense")
    seed = (place / "config.json").read_bytes()

    def run(content: bytes) -> None:
        (place / "config.json").write_bytes(content)
        inspect_model(str(place))

    return [seed], run


def _pruned_config(folder: Path) -> tuple[Sequence[bytes], Run]:
    place = seeds.pruned_folder(folder / "pruned")
    seed = (place / "config.json").read_bytes()

    def run(content: bytes) -> None:
        (place / "config.json").write_bytes(content)
        load_pruned(place)

    return [seed], run


def _index(folder: Path) -> tuple[Sequence[bytes], Run]:
    place = folder / "sharded"
    seeds.tiny_model().save_pretrained(place, max_shard_size="20KB")
    file = place / "model.safetensors.index.json"

    def run(content: bytes) -> None:
        file.write_bytes(content)
        for shard in weight_files(place):
            with open_weights(shard):
                pass

    return [file.read_bytes()], run


def _safetensors(folder: Path) -> tuple[Sequence[bytes], Run]:
    place = seeds.dense_folder(folder / "dense")
    file = place / "model.safetensors"

    def run(content: bytes) -> None:
        file.write_bytes(content)
        with open_weights(file) as weights:
            for name in weights.keys():  # noqa: SIM118 - safe_open is no mapping
                weights.get_slice(name).get_shape()
        if random_share(content, 30):
            load_pruned(place)

    return [file.read_bytes()], run


def _tokenizer(folder: Path) -> tuple[Sequence[bytes], Run]:
    place = seeds.dense_folder(folder / "dense")
    whole = {name: (place / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}

    def run(content: bytes) -> None:
        for name, valid in whole.items():
            (place / name).write_bytes(valid)
        (place / ("tokenizer.json" if b'"model"' in content else "tokenizer_config.json")).write_bytes(content)
        load_tokenizer(str(place))("Some text.")

    return list(whole.values()), run


def _gguf(folder: Path) -> tuple[Sequence[bytes], Run]:
    file = folder / "model.gguf"
    seed = seeds.gguf(folder)

    def run(content: bytes) -> None:
        file.write_bytes(content)
        inspect_model(str(file))
        load_tokenizer(str(file))

    return [seed], run


def _bin(folder: Path) -> tuple[Sequence[bytes], Run]:
    file = seeds.pruned_folder(folder / "pruned") / "pruned_model.bin"

    def run(content: bytes) -> None:
        file.write_bytes(content)
        config_of(file)
        load_pruned(file)
        load_tokenizer_of(file)

    return [file.read_bytes()], run


_ROWS = seeds.rows()
_LINES = b"\n".join(json.dumps(row).encode() for row in _ROWS)
TARGETS = (
    Target("config", _config, executions=100),
    Target("pruned config", _pruned_config, executions=25),
    Target("index", _index),
    Target("safetensors", _safetensors, mutate.mutated_header),
    Target("gguf", _gguf, mutate.mutated_bytes, executions=100),
    Target("tokenizer", _tokenizer, executions=100),
    Target("bin", _bin, mutate.mutated_pickle, executions=15),
    Target("plan", _plan),
    Target("scores", _scores, mutate.mutated_arrays),
    Target("states", _states, mutate.mutated_state(MARKER, lambda content: _sha256(json.dumps(content)))),
    Target("trainer state", _trainer_state),
    Target("results", _results),
    Target("analysis", _analysis),
    Target("tables", _tables, mutate.mutated_table),
    Target("latency table", _latency),
    Target("rows json", _rows(".json", json.dumps(_ROWS).encode())),
    Target("rows jsonl", _rows(".jsonl", _LINES), mutate.mutated_lines),
    Target("rows csv", _rows(".csv", b"instruction,input,output\nAdd,1 and 2,3\n"), mutate.mutated_table),
    Target("rows txt", _rows(".txt", b"Once upon a time.\n\nThe end.\n"), mutate.mutated_bytes),
    Target("settings", _settings, mutate.mutated_yaml),
    Target("command line", _command_line, mutate.mutated_words),
)
BY_NAME = {target.name: target for target in TARGETS}
