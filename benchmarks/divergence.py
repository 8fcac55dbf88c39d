"""How far a pruned model's next-token distributions are from the dense model's, on text.

T tokens of a window | V vocab
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

#: Log-probabilities in float32 at a time, in values.
AT_ONCE = 1 << 22


class DenseReference:
    """A dense model on windows of text: its last hidden states [T, H] are kept, so that its layers run only once."""

    @torch.inference_mode()
    def __init__(self, dense: Any, windows: Sequence[Tensor]) -> None:
        self._head, self._windows = dense.lm_head, windows
        self._hidden = [dense.model(**_inputs(dense, window)).last_hidden_state[0, :-1] for window in windows]

    @torch.inference_mode()
    def compare(self, pruned: Any) -> tuple[float, float]:
        """Perplexity of the pruned model and mean KL(dense || pruned) in nats per predicted token, from one pass.

        Log-probabilities are float32, a window's sums float64; two windows' logits [T, V] exist at a time.
        """
        sums = [
            _window_sums(self._head(hidden), pruned(**_inputs(pruned, window)).logits[0, :-1], window[1:])
            for hidden, window in zip(self._hidden, self._windows, strict=True)
        ]
        num_predicted = sum(len(window) - 1 for window in self._windows)
        nll, kl = (math.fsum(values) / num_predicted for values in zip(*sums, strict=True))
        return math.exp(nll), kl


def _inputs(model: Any, window_T: Tensor) -> dict[str, Any]:
    input_ids = window_T[None].to(model.get_input_embeddings().weight.device)
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "use_cache": False}


def _window_sums(dense_TV: Tensor, pruned_TV: Tensor, targets_T: Tensor) -> tuple[float, float]:
    """Negative log-likelihood of the targets under the pruned model, and KL, summed over the window."""
    rows = max(1, AT_ONCE // dense_TV.shape[1])
    nll = kl = 0.0
    pieces = (dense_TV.split(rows), pruned_TV.split(rows), targets_T.to(dense_TV.device).split(rows))
    for dense, pruned, targets in zip(*pieces, strict=True):
        log_dense, log_pruned = (logits.float().log_softmax(1) for logits in (dense, pruned))
        kl += float((log_dense.exp() * (log_dense - log_pruned)).sum(1).cpu().double().sum())
        nll -= float(log_pruned.gather(1, targets[:, None]).cpu().double().sum())
    return nll, kl
