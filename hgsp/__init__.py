"""hgsp: GQA-aware, global, cost-weighted structured pruning of large language models.

Importing this package is cheap (no torch, no transformers) and is all that is needed for
``AutoModelForCausalLM.from_pretrained`` to load a pruned folder.
"""

from hgsp.models.autoregister import install as _install

__version__ = "0.1.0"

_install()
