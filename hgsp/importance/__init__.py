"""Importance methods, one file each. A method scores one Linear and knows nothing of heads, layers or GQA.

I in_features | O out_features | S samples | G groups
"""

from hgsp.importance.fisher import FISHER
from hgsp.importance.fisher_token import FISHER_TOKEN
from hgsp.importance.flap import FLAP
from hgsp.importance.magnitude import MAGNITUDE
from hgsp.importance.random import RANDOM
from hgsp.importance.taylor import TAYLOR
from hgsp.importance.taylor_2nd import TAYLOR_2ND
from hgsp.importance.types import ColumnMethod, GateMethod, GroupMethod, Method, WeightMethod
from hgsp.importance.wanda import WANDA

METHODS: dict[str, Method] = {
    method.name: method for method in (TAYLOR, TAYLOR_2ND, WANDA, MAGNITUDE, FISHER, FISHER_TOKEN, FLAP, RANDOM)
}

__all__ = ["METHODS", "ColumnMethod", "GateMethod", "GroupMethod", "Method", "WeightMethod"]
