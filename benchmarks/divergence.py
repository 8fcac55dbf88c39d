"""KL divergence between the next-token distributions of the dense and the pruned model, on text.

T tokens of a window | H hidden | V vocab
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

#: Float32 log-probabilities computed at a time, in values.
CHUNK_VALUES = 1 << 22


class DenseReference:
    """A dense model evaluated on windows of text; caches its last hidden states [T, H], so its layers run only once."""

    @torch.inference_mode()
    def __init__(self, dense: Any, windows: Sequence[Tensor]) -> None:
        self._head, self._windows = dense.lm_head, windows
        self._hidden = [dense.model(**_inputs(dense, window)).last_hidden_state[0, :-1] for window in windows]

    @torch.inference_mode()
    def compare(self, pruned: Any) -> tuple[float, float]:
        """Return the pruned model's perplexity and the mean KL(dense || pruned) in nats per predicted token.

        Log-probabilities are float32, sums float64. Memory holds one window's logits [T, V] of both models at a time.
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
    """Return the pruned model's negative log-likelihood of the targets, and KL, both summed over a window."""
    rows = max(1, CHUNK_VALUES // dense_TV.shape[1])
    nll = kl = 0.0
    pieces = (dense_TV.split(rows), pruned_TV.split(rows), targets_T.to(dense_TV.device).split(rows))
    for dense, pruned, targets in zip(*pieces, strict=True):
        log_dense, log_pruned = (logits.float().log_softmax(1) for logits in (dense, pruned))
        kl += float((log_dense.exp() * (log_dense - log_pruned)).sum(1).cpu().double().sum())
        nll -= float(log_pruned.gather(1, targets[:, None]).cpu().double().sum())
    return nll, kl
