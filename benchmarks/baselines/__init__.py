"""Published methods, implemented from their formulas, on the same model, text and parameter budget as ours.

A new baseline is a file here and a line in ``BASELINES``: ``prune(model, calibration, budget_params, batch_size)``
consumes a dense model and returns the pruned one, which may be any module with the same forward.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from baselines import flap, gisp, llm_pruner, osscar, shortgpt, uniform_magnitude, uniform_random, wanda_sp
from hgsp.data.calibration import Calibration

BASELINES: dict[str, Callable[[Any, Calibration, int, int], Any]] = {
    "uniform-random": uniform_random.prune,
    "uniform-magnitude": uniform_magnitude.prune,
    "llm-pruner": llm_pruner.prune,
    "llm-pruner-strided": partial(llm_pruner.prune, strided=True),
    "llm-pruner-global": partial(llm_pruner.prune, globally=True),
    "wanda-sp": wanda_sp.prune,
    "flap-published": flap.prune,
    "shortgpt": shortgpt.prune,
    "osscar": osscar.prune,
    "gisp": gisp.prune,
}
