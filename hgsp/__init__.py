"""GQA-aware, global, cost-weighted structured pruning of large language models.

>>> import hgsp
>>> model, tokenizer = hgsp.load("HuggingFaceTB/SmolLM2-135M-Instruct")
>>> text = hgsp.calibration("wikitext2", tokenizer, num_sequences=128, seq_len=256)
>>> scores = hgsp.score(model, text, method="fisher")
>>> pruned = hgsp.prune(model, scores.select(ratio=0.2), reconstruct=text)
>>> hgsp.save(pruned, tokenizer, "smollm2-pruned")

Importing this package is cheap: names are resolved on first use (PEP 562), torch and transformers with them. The import
is all that ``AutoModelForCausalLM.from_pretrained`` needs to load a pruned folder.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hgsp.errors import InputError, NumericalError
from hgsp.models.autoregister import install as _install

if TYPE_CHECKING:
    from hgsp.data.calibration import Calibration
    from hgsp.evaluation.measure import evaluate
    from hgsp.exports.export import export
    from hgsp.models.checkpoint import load_pruned
    from hgsp.pipeline.api import Scores, calibration, load, prune, save, score
    from hgsp.pruning.plan import PrunePlan
    from hgsp.pruning.shape_rules import ShapeRules
    from hgsp.recovery.recover import recover

__version__ = "0.1.0"

__all__ = [
    "Calibration",
    "InputError",
    "NumericalError",
    "PrunePlan",
    "Scores",
    "ShapeRules",
    "calibration",
    "evaluate",
    "export",
    "load",
    "load_pruned",
    "prune",
    "recover",
    "save",
    "score",
]

_MODULE_OF = {
    "Calibration": "hgsp.data.calibration",
    "ShapeRules": "hgsp.pruning.shape_rules",
    "PrunePlan": "hgsp.pruning.plan",
    "Scores": "hgsp.pipeline.api",
    "calibration": "hgsp.pipeline.api",
    "evaluate": "hgsp.evaluation.measure",
    "export": "hgsp.exports.export",
    "load": "hgsp.pipeline.api",
    "load_pruned": "hgsp.models.checkpoint",
    "prune": "hgsp.pipeline.api",
    "recover": "hgsp.recovery.recover",
    "save": "hgsp.pipeline.api",
    "score": "hgsp.pipeline.api",
}

_install()


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'hgsp' has no attribute '{name}'")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
