"""Importance methods, one file each. A method scores one Linear and knows nothing of heads, layers or GQA."""

from hgsp.errors import InputError
from hgsp.scoring.methods.fisher import FISHER
from hgsp.scoring.methods.fisher_token import FISHER_TOKEN
from hgsp.scoring.methods.flap import FLAP
from hgsp.scoring.methods.magnitude import MAGNITUDE
from hgsp.scoring.methods.random import RANDOM
from hgsp.scoring.methods.reap import REAP
from hgsp.scoring.methods.taylor import TAYLOR
from hgsp.scoring.methods.taylor_2nd import TAYLOR_2ND
from hgsp.scoring.methods.types import ColumnMethod, GroupMethod, MaskMethod, Method, OutputMethod, WeightMethod
from hgsp.scoring.methods.wanda import WANDA

METHODS: dict[str, Method] = {
    method.name: method for method in (TAYLOR, TAYLOR_2ND, FISHER, FISHER_TOKEN, WANDA, FLAP, REAP, MAGNITUDE, RANDOM)
}


def method_named(method: Method | str) -> Method:
    """Return a method of ``METHODS`` by its name; a ``Method`` is returned unchanged.

    Raises:
        InputError: unknown name.
    """
    if not isinstance(method, str):
        return method
    if method not in METHODS:
        raise InputError(expected="an importance method", got=f"'{method}'", remedy=f"use one of {', '.join(METHODS)}")
    return METHODS[method]


__all__ = [
    "METHODS",
    "ColumnMethod",
    "GroupMethod",
    "MaskMethod",
    "Method",
    "OutputMethod",
    "WeightMethod",
    "method_named",
]
