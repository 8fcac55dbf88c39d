"""The one place where anything that a library raises about a file of a model becomes a refusal.

The libraries that read models check little: of a wrong file, transformers, tokenizers, gguf and torch raise KeyError,
TypeError, AttributeError, AssertionError, OverflowError, struct.error, plain Exception, or a panic of Rust code, which
is a BaseException. No list of types would be complete, so errors that are not about the file are named instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hgsp.console.exit_codes import OS_REMEDIES
from hgsp.errors import InputError, NumericalError


@contextmanager
def refusing(refusal: Callable[[BaseException], InputError]) -> Iterator[None]:
    """Raise the refusal instead of an error that a library raises inside; wrap calls of a library alone.

    Raises:
        InputError: as ``refusal`` returns it.
    """
    try:
        yield
    except BaseException as error:
        if not is_about_the_file(error):
            raise
        raise refusal(error) from error


def is_about_the_file(error: BaseException) -> bool:
    """Return whether an error of a library is the file's fault: not ours, not the user's Ctrl-C, not the machine's."""
    if isinstance(error, (InputError, NumericalError, MemoryError, Warning)):
        return False
    if isinstance(error, OSError) and error.errno in OS_REMEDIES:
        return False
    if isinstance(error, RuntimeError) and ("out of memory" in str(error).lower() or "can't allocate" in str(error)):
        return False
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"
