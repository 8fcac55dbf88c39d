"""What every command shares: exit codes, one-line errors, and the ``hgsp`` command that names them all."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from hgsp.errors import InputError, NumericalError

LOG = logging.getLogger("hgsp")

#: Subcommand -> (module with ``main``, what it does).
COMMANDS = {
    "prune": ("run_global_pruning", "score, cut, save and evaluate a model"),
    "score": ("hgsp.cli.score", "score a model and write scores.npz"),
    "cut": ("hgsp.cli.cut", "cut a model from scores.npz"),
    "finetune": ("hgsp.cli.finetune", "bring a pruned model's quality back by training"),
    "evaluate": ("hgsp.cli.evaluate", "measure a model, dense or pruned"),
    "summarize": ("hgsp.cli.summarize", "one table and two plots over many results"),
}


def run_guarded(
    run: Callable[[], int],
    out_of_memory: str | None = None,
    interrupted: str = "interrupted; nothing half-written is left",
) -> int:
    """Run a command and turn its failures into exit codes: 2 for bad input, 1 for failure, both with one clear line.

    ``out_of_memory`` is what to try then, instead of what a scoring run can try. SIGTERM, which batch systems send, is
    an interrupt like Ctrl-C.
    """
    try:
        with _terminated_as_interrupted():
            return run()
    except InputError as error:
        return _fail(2, str(error))
    except NumericalError as error:
        return _fail(1, str(error))
    except KeyboardInterrupt:
        return _fail(1, interrupted)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "out of memory" in str(error).lower() or "can't allocate" in str(error):
            first = str(error).splitlines()[0] if str(error) else "MemoryError"
            return _fail(1, f"out of memory ({first}); {out_of_memory or OUT_OF_MEMORY}")
        raise


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only that one may say what a signal does
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


OUT_OF_MEMORY = (
    "nothing half-written is left. Try, in this order: --batch_size 1, --use_gradient_checkpointing, a smaller "
    "--nsamples or --seq_len, --spill_dir DIR, --offload, or --importance_method fisher (no weight gradients) or "
    "magnitude (no data)"
)


def _fail(code: int, message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def quiet_libraries() -> None:
    """Keep transformers' and the hub's bars and notices out of our output; what they warn about we check ourselves."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # names peft still calls
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # a line for every retry without a network


def main(argv: Sequence[str] | None = None) -> int:
    """``hgsp COMMAND ...``: dispatch to a command's own ``main``."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: hgsp COMMAND ...\n")
        for name, (_, purpose) in COMMANDS.items():
            print(f"  {name:<9} {purpose}")
        print("\n`hgsp COMMAND --help` lists the flags.")
        return 0
    if arguments[0] == "--version":
        from hgsp import __version__

        print(__version__)
        return 0
    if arguments[0] not in COMMANDS:
        return _fail(2, f"expected one of {', '.join(COMMANDS)}; got '{arguments[0]}'; see hgsp --help")
    command: int = importlib.import_module(COMMANDS[arguments[0]][0]).main(arguments[1:])
    return command
