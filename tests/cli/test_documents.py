"""Documents can be followed: commands go through the real parsers, links and files exist, imports work."""

import argparse
import ast
import dataclasses
import importlib
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from conftest import REPOSITORY
from documents import DOCUMENTS, blocks, name_of, without_blocks
from hgsp.cli import study
from hgsp.cli.main import COMMANDS, options_of
from hgsp.cli.summarize import SummaryConfig
from hgsp.console.flags import parse
from hgsp.console.parser import flag_of
from hgsp.evaluation.config import EvaluationConfig
from hgsp.pipeline.config import PruneConfig
from hgsp.pipeline.recovery_config import RecoveryConfig
from hgsp.study.run import cell_settings

#: What a command's arguments become.
OPTIONS = {
    "run_global_pruning.py": PruneConfig,
    "finetune_lora.py": RecoveryConfig,
    "evaluation/run_evaluation.py": EvaluationConfig,
    "scripts/summarize_results.py": SummaryConfig,
    **{f"hgsp {command}": options_of(command) for command in COMMANDS},
}
#: Programs of others, whose arguments are theirs.
OTHERS = {"cd", "export", "git", "pip", "source", "hf", "huggingface-cli", "modelscope", "ls", "cat"}
OTHERS |= {"vllm", "lm_eval", "trtllm-serve", "llama-server", "ollama", "mlx_lm.server"}
#: Files that documents name by their path in the repository. What lies in a result has other names or endings.
OURS = re.compile(
    r"`((?:hgsp|evaluation|examples|scripts|benchmarks|tests|docs)/[\w./-]+\.(?:py|sh|md)|\w+\.(?:sh|md|lock|toml))`"
)
RESULT_FILES = {"results.md", "summary.md", "report.md"}


def commands():
    """(document, command) of every line that is one."""
    for path in DOCUMENTS:
        for text in blocks(path, "bash", "sh", "shell", "console"):
            for line in text.splitlines():
                if words := shlex.split(line, comments=True):
                    yield pytest.param(words, id=f"{name_of(path)}: {shlex.join(words)[:90]}")


def read(words):
    """Send a command through the parser of what it calls."""
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    program, *arguments = words
    if program in ("python", "python3"):
        read_script(*arguments)
    elif program == "hgsp":
        read_subcommand(*arguments)
    elif program == "torchrun":
        from torch.distributed.run import get_args_parser

        started = get_args_parser().parse_args(arguments)
        read_script(started.training_script, *started.training_script_args)
    elif program == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        assert arguments[0] == "launch"
        started = launch_command_parser().parse_args(arguments[1:])
        read_script(started.training_script, *started.training_script_args)
    elif program.removeprefix("./") == "scripts/run_all_experiments.sh":
        read_subcommand("study", *arguments)
    elif program == "sbatch":
        read(arguments[arguments.index("scripts/slurm_requeue.sh") + 1 :])
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in arguments if "=" not in word} <= set(targets)
    else:
        assert program in OTHERS, f"{program}: neither ours nor known"


def read_subcommand(command, *arguments):
    assert command in COMMANDS
    if command == "study":
        own, passed = study.options(arguments)
        cell_settings(study.study_cells(None)[0], own.folder, passed)
    else:
        read_options(OPTIONS[f"hgsp {command}"], arguments)


def refusal_of(words):
    """What the parser says against a command; None if it takes it."""
    try:
        read(words)
    except (SystemExit, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def read_script(script, *arguments):
    if (script, *arguments[:1]) == ("-m", "hgsp"):
        read_subcommand(*arguments[1:])
    elif script == "-m":
        assert arguments[0] in ("pip", "venv", "pytest")
    elif script in OPTIONS:
        read_options(OPTIONS[script], arguments)
    else:
        read_by_argparse(script, arguments)


def read_options(options, arguments):
    for name in arguments:
        if name.endswith(".jsonl"):
            Path(name).touch()  # a reader's own text
    if options is SummaryConfig:
        for folder in arguments[: arguments.index("--output") if "--output" in arguments else None]:
            Path(folder).mkdir(parents=True, exist_ok=True)
    parse(options, list(arguments), prog=None, description="")


class ParsedError(Exception):
    """Raised in place of what a script does once its arguments are read."""


def read_by_argparse(script, arguments):
    """Run a script up to the end of ``parse_args``."""
    real = argparse.ArgumentParser.parse_args

    def parse_args(parser, *given):
        real(parser, *given)
        raise ParsedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patch.setattr(sys, "argv", [script, *arguments])
        patch.syspath_prepend(str((REPOSITORY / script).parent))
        with pytest.raises(ParsedError):
            runpy.run_path(str(REPOSITORY / script), run_name="__main__")


@pytest.mark.parametrize("words", list(commands()))
def test_commands_go_through_the_real_parsers(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal_of(words) is None


@pytest.mark.parametrize(
    "command",
    [
        "python run_global_pruning.py --base_model M --output_name o --pruning_ratio 0.2 --temprature 0",
        "accelerate launch --num_processes 2 finetune_lora.py --pruned_model p --output_dir o --batch_size x",
        "torchrun --nproc_per_node 2 run_global_pruning.py --base_model M",
        "hgsp evaluate --model_path p --tasks wikitxt",
        "hgsp prunes",
        "scripts/run_all_experiments.sh --temperatur 0",
        "python benchmarks/methods.py --nsample 3",
        "make nothing",
        "unknown",
    ],
)
def test_a_wrong_command_would_be_noticed(command):
    with pytest.raises((SystemExit, ValueError, AssertionError, pytest.fail.Exception)):
        read(shlex.split(command))


def test_documents_have_commands_to_test():
    """A fence of another name, or none, would leave every test above without work."""
    texts = {part.id.partition(":")[0] for part in commands()}
    assert {"README.md", "USAGE.md", "docs/EVALUATION.md", "docs/FINETUNING.md"} <= texts
    for path in DOCUMENTS:
        for text in blocks(path, "text", "console", "python", "yaml"):
            assert not re.search(r"^(\$ )?(python|hgsp|torchrun) ", text, re.MULTILINE), name_of(path)
        fences = re.findall(r"^```(.*)$", path.read_text(), re.MULTILINE)
        assert len(fences) % 2 == 0, f"{name_of(path)}: a block is not closed"


def anchors_of(path):
    headings = re.findall(r"^#+ (.*)$", without_blocks(path), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_and_file_names_resolve(path):
    text = without_blocks(path)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), target
        assert REPOSITORY in (linked, *linked.parents), f"{target} leaves the repository"
        assert not anchor or anchor in anchors_of(linked), target
    for name in OURS.findall(text):
        assert name in RESULT_FILES or (REPOSITORY / name).exists(), name


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_python_blocks_compile_and_their_imports_work(path):
    for text in blocks(path, "python"):
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module}.{alias.name}"


def test_flags_named_in_documents_exist():
    """In prose and tables too: a flag of ours that was renamed lives on in documents otherwise."""
    known = {f"--{item.name}" for options in set(OPTIONS.values()) for item in dataclasses.fields(options)}
    sources = [*(REPOSITORY / "benchmarks").glob("*.py")]
    known |= {flag for path in sources for flag in re.findall(r'"(--\w+)"', path.read_text())}
    known |= {"--help", "--num_processes", "--nproc_per_node", "--config_file", "--version", "--config", "--no_SWITCH"}
    known |= {f"--{preset}" for preset in PruneConfig.PRESETS}
    for path in DOCUMENTS:
        named = set(map(flag_of, re.findall(r"`(--[\w-]+)", path.read_text())))
        assert named <= known, (name_of(path), named - known)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_paragraphs_are_short(path):
    lines = [line for line in without_blocks(path).splitlines() if not line.startswith("|")]
    long = [line[:60] for line in lines if len(line) > 600]
    assert not long


def test_the_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 90
