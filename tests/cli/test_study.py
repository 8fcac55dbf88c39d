"""The three-model study as users call it: planned and executed commands, and a kill that costs at most one cell."""

import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import run_global_pruning
from conftest import REPOSITORY, VOCAB, make_tiny
from hgsp.cli import study
from hgsp.study import processes
from hgsp.study.matrix import smoke_cells

SCRIPT = REPOSITORY / "scripts" / "run_all_experiments.sh"

#: Written by hand from the documented interface: three models, seven cells.
SEVEN = """\
python run_global_pruning.py --base_model meta-llama/Meta-Llama-3-8B --output_name LLaMA-3-8B/prune_20 --pruning_ratio 0.2
python run_global_pruning.py --base_model meta-llama/Meta-Llama-3-8B --output_name LLaMA-3-8B/prune_30 --pruning_ratio 0.3 --scores results/LLaMA-3-8B/prune_20/scores.npz
python run_global_pruning.py --base_model meta-llama/Meta-Llama-3-8B --output_name LLaMA-3-8B/prune_50 --pruning_ratio 0.5 --scores results/LLaMA-3-8B/prune_20/scores.npz
python run_global_pruning.py --base_model mistralai/Mistral-7B-v0.3 --output_name Mistral-7B-v0.3/prune_20 --pruning_ratio 0.2
python run_global_pruning.py --base_model mistralai/Mistral-7B-v0.3 --output_name Mistral-7B-v0.3/prune_30 --pruning_ratio 0.3 --scores results/Mistral-7B-v0.3/prune_20/scores.npz
python run_global_pruning.py --base_model Qwen/Qwen2.5-7B --output_name Qwen2.5-7B/prune_20 --pruning_ratio 0.2
python run_global_pruning.py --base_model Qwen/Qwen2.5-7B --output_name Qwen2.5-7B/prune_30 --pruning_ratio 0.3 --scores results/Qwen2.5-7B/prune_20/scores.npz
"""  # noqa: E501

#: Flags for tiny models, which take seconds instead of the minutes of --smoke.
QUICK = ("--nsamples", "2", "--seq_len", "32", "--eval_seq_len", "64", "--eval_max_windows", "1", "--dtype", "float32")
SMALL = {"smollm2-135m": "llama-9q3kv-tied", "mistral-135m": "mistral-8q4kv", "qwen2.5-0.5b": "qwen2-14q2kv"}
CELLS = [
    *("SmolLM2-135M/prune_20", "SmolLM2-135M/prune_30", "SmolLM2-135M/prune_50"),
    *("Mistral-135M/prune_20", "Mistral-135M/prune_30", "Qwen2.5-0.5B/prune_20", "Qwen2.5-0.5B/prune_30"),
]


@pytest.fixture(autouse=True)
def no_models(monkeypatch):
    monkeypatch.delenv("MODELS_DIR", raising=False)


@pytest.fixture(scope="module")
def models(tmp_path_factory, tokenizer):
    """A MODELS_DIR with a tiny model in place of each small one, wide enough to prune half of it.

    The vocabulary has one more token: loaded next to a Qwen2 config, the tokenizer gains that family's end of text.
    """
    folder = tmp_path_factory.mktemp("models")
    for name, tiny in SMALL.items():
        make_tiny(tiny, intermediate_size=256, vocab_size=VOCAB + 1).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


class Ended:
    """A process that has ended."""

    def __init__(self, code):
        self.poll = lambda: code


@pytest.fixture
def small(models, tmp_path, monkeypatch):
    """``small(*flags)`` runs the small study in this process; returns its exit code and the cells' arguments."""
    monkeypatch.setenv("MODELS_DIR", str(models))
    ran = []

    def start(arguments, number, log):
        ran.append(arguments)
        return Ended(run_global_pruning.main(arguments))

    monkeypatch.setattr(processes, "subprocess_starter", lambda command, locks: start)

    def run(*flags):
        ran.clear()
        code = study.main(["--smoke", "--results_dir", str(tmp_path / "out"), *QUICK, *flags])
        return code, list(ran)

    return run


def start_here(arguments, number, log):
    return Ended(run_global_pruning.main(arguments))


@pytest.fixture(scope="module")
def finished(models, tmp_path_factory):
    """The results of a whole small study."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELS_DIR", str(models))
        patch.setattr(processes, "subprocess_starter", lambda command, locks: start_here)
        assert study.main(["--smoke", "--results_dir", str(folder), *QUICK]) == 0
    return folder


def names_of(ran):
    return [value_of(arguments, "--output_name") for arguments in ran]


def value_of(arguments, flag):
    return arguments[arguments.index(flag) + 1]


@pytest.fixture
def quick_cells(finished, monkeypatch):
    """Cells that copy the results of ``finished``, for tests of when they run and after what."""

    def copy(arguments):
        name = value_of(arguments, "--output_name")
        result = Path(value_of(arguments, "--results_dir")) / name
        if result.exists():
            return 2
        shutil.copytree(finished / name, result)
        return 0

    monkeypatch.setattr(run_global_pruning, "main", copy)


def results_in(folder):
    """Return every file's name, with a hash of its content unless it holds times; kills must not change these."""
    fixed = (".safetensors", ".csv", "plan.json", "config.json", ".npz")
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(("summary", ".run_all"))
    ]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.name.endswith(fixed)
        else ""
        for path in files
    }


def test_the_dry_run_prints_the_seven_commands_and_runs_nothing(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "MODELS_DIR"}
    environment["VIRTUAL_ENV"] = sys.prefix
    done = subprocess.run(
        [SCRIPT, "--dry_run"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, SEVEN), done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flags", [["--", "--temperature", "0.0", "--finetune"], ["--temperature", "0.0", "--finetune"]]
)
def test_other_flags_go_to_every_cell(flags, capsys):
    assert study.main(["--dry_run", *flags]) == 0
    for line, plain in zip(capsys.readouterr().out.splitlines(), SEVEN.splitlines(), strict=True):
        before, at, scores = plain.partition(" --scores")
        assert line == f"{before} --temperature 0.0 --finetune{at}{scores}"


def test_models_dir_takes_precedence_over_the_hub(tmp_path, monkeypatch, capsys):
    (tmp_path / "Qwen2.5-7B").mkdir()
    monkeypatch.setenv("MODELS_DIR", str(tmp_path))
    assert study.main(["--dry_run"]) == 0
    used = [shlex.split(line)[3] for line in capsys.readouterr().out.splitlines()]
    assert used == [
        *["meta-llama/Meta-Llama-3-8B"] * 3,
        *["mistralai/Mistral-7B-v0.3"] * 2,
        *[str(tmp_path / "Qwen2.5-7B")] * 2,
    ]


def test_smollm2_stands_in_for_missing_small_models(tmp_path):
    cells = smoke_cells({"smollm2-135m": tmp_path})
    assert {cell.base_model for cell in cells} == {str(tmp_path)}
    assert [cell.output_name for cell in cells][3:] == [
        *("SmolLM2-135M-fisher/prune_20", "SmolLM2-135M-fisher/prune_30"),
        *("SmolLM2-135M-seed-7/prune_20", "SmolLM2-135M-seed-7/prune_30"),
    ]
    assert cells[3].flags[-2:] == ("--importance_method", "fisher")
    assert cells[5].flags[-2:] == ("--seed", "7")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pruning_ratio", "0.4"], "the study has its own ratios"),
        (["--base_model=other"], "MODELS_DIR"),
        (["--overwrite"], "remove the folders"),
        (["--temperature", "-1"], "--temperature"),
        (["--", "--dry_run"], "--dry_run"),
    ],
)
def test_bad_flags_are_refused_before_anything_is_run(flags, message, small, tmp_path, capsys):
    assert small(*flags) == (2, [])
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*/"))


def test_a_models_dir_that_is_not_there_and_a_missing_small_model_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MODELS_DIR", str(tmp_path / "nowhere"))
    assert study.main(["--dry_run"]) == 2
    assert "MODELS_DIR" in capsys.readouterr().err
    monkeypatch.delenv("MODELS_DIR")
    monkeypatch.setattr("hgsp.study.demo_model.metadata.files", lambda _name: None)
    assert study.main(["--dry_run", "--smoke"]) == 2
    assert "make demo-model" in capsys.readouterr().err


def test_the_whole_matrix_with_one_scoring_pass_per_model_then_nothing_again(small, tmp_path, capsys):
    (tmp_path / "out" / "other" / "p20.training").mkdir(parents=True)  # not part of the study or its summary
    code, ran = small()
    assert (code, names_of(ran)) == (0, CELLS)
    assert len((tmp_path / "out" / "summary.csv").read_text().splitlines()) == 1 + 7
    assert [arguments[-1] if "--scores" in arguments else "" for arguments in ran] == [
        *("", *[str(tmp_path / "out/SmolLM2-135M/prune_20/scores.npz")] * 2),
        *("", str(tmp_path / "out/Mistral-135M/prune_20/scores.npz")),
        *("", str(tmp_path / "out/Qwen2.5-0.5B/prune_20/scores.npz")),
    ]
    assert {path.name for path in (tmp_path / "out").glob("summary*")} == {
        *("summary.csv", "summary.md", "summary.tex", "summary_ppl.png", "summary_layers.png")
    }
    shown = capsys.readouterr().out
    assert "7 cells completed, 0 already finished, 0 failed" in shown
    assert "skipped" not in shown
    assert small() == (0, [])
    assert "0 cells completed, 7 already finished, 0 failed" in capsys.readouterr().out


@pytest.mark.usefixtures("quick_cells")
def test_a_failing_cell_does_not_stop_the_others_nor_their_scores(small, tmp_path, capsys):
    """The next cell of the same model computes its own scores."""
    for name in ("SmolLM2-135M/prune_20", "Mistral-135M/prune_30"):
        (tmp_path / "out" / name).mkdir(parents=True)  # in the way, but not a result
    code, ran = small()
    assert (code, names_of(ran)) == (1, CELLS)
    assert "--scores" not in ran[1]
    assert ran[2][-1] == str(tmp_path / "out/SmolLM2-135M/prune_30/scores.npz")
    shown = capsys.readouterr().out
    assert "5 cells completed, 0 already finished, 2 failed" in shown
    assert "failed: SmolLM2-135M/prune_20, refused (exit code 2)\n  python run_global_pruning.py --base_model" in shown
    (tmp_path / "out/SmolLM2-135M/prune_20").rmdir()
    (tmp_path / "out/Mistral-135M/prune_30").rmdir()
    code, ran = small()
    assert (code, names_of(ran)) == (0, ["SmolLM2-135M/prune_20", "Mistral-135M/prune_30"])


def test_leftovers_of_a_kill_are_removed_and_other_folders_are_not(small, tmp_path):
    folder = tmp_path / "out" / "SmolLM2-135M"
    for name in (".prune_20-abc.partial", ".prune_20_finetuned-abc.partial", ".mine-abc.partial"):
        (folder / name).mkdir(parents=True)
    small()
    assert {path.name for path in folder.iterdir()} == {".mine-abc.partial", "prune_20", "prune_30", "prune_50"}


def test_a_study_begun_with_other_flags_is_not_mixed(small, finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "out")
    assert small("--temperature", "1.0") == (2, [])
    assert "--temperature 0.0 instead of 1.0" in capsys.readouterr().err
    code, ran = small("--batch_size", "1", "--eval_max_windows", "2")  # no influence on pruning
    assert (code, ran) == (0, [])


def test_a_cell_that_was_pruned_but_not_recovered_runs_again(small, finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "out")
    calls = []
    monkeypatch.setattr(run_global_pruning, "main", lambda arguments: calls.append(arguments) or 0)
    small("--finetune", "--finetune_data_path", "builtin")
    assert [call[-1] for call in calls] == ["--overwrite"] * 7
    assert all(call[-3] == "--scores" for call in calls)
    for name in CELLS:
        (tmp_path / "out" / f"{name}_finetuned").mkdir()
        (tmp_path / "out" / f"{name}_finetuned" / "recovery_analysis.json").write_text("{}")
    assert small("--finetune", "--finetune_data_path", "builtin") == (0, [])


def test_two_studies_cannot_share_a_folder(small, tmp_path, capsys):
    with processes.study_lock(str(tmp_path / "out")):
        assert small() == (2, [])
    assert "one study at a time" in capsys.readouterr().err


@pytest.mark.usefixtures("quick_cells")
def test_each_device_runs_one_cell_at_a_time_and_cells_wait_for_scores(models, tmp_path, monkeypatch):
    """With three devices, the three models are scored first; what comes next has the arguments that it has on one."""
    monkeypatch.setenv("MODELS_DIR", str(models))
    order, alive = [], []

    class Running:
        def __init__(self, arguments, number):
            assert number not in [other.number for other in alive], "two cells on one device"
            alive.append(self)
            self.arguments, self.number, self.code = arguments, number, None
            order.append(arguments)

        def poll(self):
            if self.code is None and self is alive[0]:
                alive.remove(self)
                self.code = run_global_pruning.main(self.arguments)
            return self.code

    monkeypatch.setattr(processes, "subprocess_starter", lambda command, locks: lambda *of: Running(*of[:2]))
    flags = ("--results_dir", str(tmp_path / "out"), *QUICK, "--devices", "cpu,cpu,cpu")
    assert study.main(["--smoke", *flags]) == 0
    assert sorted(names_of(order)) == sorted(CELLS)
    assert names_of(order)[:3] == [name for name in CELLS if name.endswith("20")]
    scores = [value_of(arguments, "--scores") for arguments in order[3:]]
    models_of = [name.partition("/")[0] for name in names_of(order)[3:]]
    assert scores == [str(tmp_path / "out" / model / "prune_20" / "scores.npz") for model in models_of]


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--devices", "cpu,tpu"], "'tpu'"), (["--devices", "cuda:99"], "'cuda:99'"), (["--devices", "cpu"], "got both")],
)
def test_devices_that_are_not_there_or_named_twice_are_refused(flags, message, small, capsys):
    also = ["--device", "cpu"] if "both" in message else []
    assert small(*flags, *also) == (2, [])
    assert message in capsys.readouterr().err


def default_interrupts():
    """Restore Ctrl-C, which shells disable for background jobs such as this test suite."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Study:
    """The script in its own process group."""

    def __init__(self, models, folder, *flags):
        environment = dict(os.environ, MODELS_DIR=str(models), OMP_NUM_THREADS="1", VIRTUAL_ENV=sys.prefix)
        with (folder.parent / f"{folder.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [SCRIPT, "--smoke", "--results_dir", str(folder), *QUICK, *flags],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=default_interrupts,
            )

    def wait_for(self, condition, seconds=120):
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, "exited early"
            assert time.monotonic() < end, "timed out"
            time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.thorough
def test_killed_twice_and_started_again_on_two_devices_gives_the_files_of_one(models, finished, tmp_path):
    folder = tmp_path / "killed"
    first = Study(models, folder)
    first.wait_for(lambda: list(folder.rglob(".prune_20-*.partial")))  # the first cell is being written
    os.killpg(first.process.pid, signal.SIGKILL)
    first.process.wait()
    second = Study(models, folder)
    second.wait_for(lambda: (folder / "SmolLM2-135M/prune_20/pruning_analysis.json").exists())
    made = (folder / "SmolLM2-135M/prune_20/pruning_analysis.json").stat().st_mtime_ns
    os.killpg(second.process.pid, signal.SIGKILL)
    second.process.wait()
    assert Study(models, folder, "--devices", "cpu,cpu").process.wait(300) == 0
    assert (folder / "SmolLM2-135M/prune_20/pruning_analysis.json").stat().st_mtime_ns == made
    found = {name: content for name, content in results_in(folder).items() if not name.endswith("0.log")}
    assert found == results_in(finished)
    logged = {f"{path.parent.name}/{path.stem}" for path in folder.rglob("*0.log")}
    assert logged == set(CELLS) - {"SmolLM2-135M/prune_20"}  # finished on one device, which shows its output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "devices"),
    [
        pytest.param("Ctrl-C", ("--devices", "cpu,cpu"), id="Ctrl-C-two"),
        pytest.param("kill", (), id="kill-one"),
        pytest.param("Ctrl-C", (), marks=pytest.mark.thorough, id="Ctrl-C-one"),
        pytest.param("kill", ("--devices", "cpu,cpu"), marks=pytest.mark.thorough, id="kill-two"),
    ],
)
def test_an_interrupt_removes_partial_output_and_exits_with_1(end, devices, models, tmp_path):
    """Ctrl-C reaches the whole process group, kill only the script."""
    folder = tmp_path / "ended"
    run = Study(models, folder, *devices)
    run.wait_for(lambda: list(folder.rglob(".prune_20-*.partial")))
    if end == "Ctrl-C":
        os.killpg(run.process.pid, signal.SIGINT)
    else:
        run.process.terminate()
    assert run.process.wait(60) == 1
    assert not list(folder.rglob(".*.partial"))
    assert "the same command resumes" in (tmp_path / "ended.log").read_text()


@pytest.mark.slow
def test_no_study_starts_while_a_cell_outlives_its_own(models, tmp_path):
    folder = tmp_path / "orphaned"
    first = Study(models, folder)
    first.wait_for(lambda: (folder / ".run_all_experiments.lock").exists())
    first.wait_for(lambda: "[1/7]" in (tmp_path / "orphaned.log").read_text())
    time.sleep(0.5)  # the line is logged before the cell starts
    first.process.kill()
    first.process.wait()
    try:
        assert Study(models, folder).process.wait(60) == 2
        assert "one study at a time" in (tmp_path / "orphaned.log").read_text()
    finally:
        os.killpg(first.process.pid, signal.SIGKILL)
