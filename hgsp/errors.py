"""The two errors a user can meet: a request that cannot be met, and a computation that went wrong."""


class InputError(ValueError):
    """Bad input or an impossible request. Raised before anything expensive or written; exit code 2."""

    def __init__(self, *, expected: str, got: object, remedy: str) -> None:
        self.expected, self.got = expected, str(got)
        super().__init__(f"expected {expected}; got {got}; {remedy}")


class NumericalError(RuntimeError):
    """A value that must be finite is not. The message names where it was first seen; exit code 1."""


def not_finite(what: str, layer: int, projection: str) -> NumericalError:
    """The error about a NaN or infinity in one layer, by its place."""
    return NumericalError(
        f"{what} of layer {layer}, {projection} is not finite (bf16-trained models overflow in float16: "
        "use --dtype bfloat16)"
    )


def one_line(error: BaseException) -> str:
    """What another library's error says, short enough for a message of ours."""
    return " ".join(str(error).split())[:200] or type(error).__name__
