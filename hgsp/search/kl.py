"""KL divergence from the dense model's next-token distributions, and its gradient at the last hidden states.

N sequences | B of them in a batch | T tokens | H hidden
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from hgsp.layerwise.walk import LayerWalk
from hgsp.models.decoder import MAX_LOGITS, Decoder


class DivergenceFromDense:
    """KL(dense || other) of the next-token distributions on fixed text; a context manager.

    Keeps the last hidden states of the dense model, [N, T, H] in its dtype, in ``spill_dir`` unless that is None.
    Logits exist for a few positions at a time, log-probabilities are float32, sums over tokens float64.
    """

    def __init__(self, decoder: Decoder, input_ids_NT: Tensor, batch_size: int, spill_dir: Path | None) -> None:
        self._decoder = decoder
        self._walk = LayerWalk(decoder, input_ids_NT, batch_size, spill_dir=spill_dir)
        for layer_pass in self._walk.forward():
            layer_pass.run()

    def __enter__(self) -> DivergenceFromDense:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._walk.__exit__()

    def per_token(self, walk: LayerWalk) -> float:
        """Walk another model forward over the same text, and return the mean divergence per token in nats."""
        for layer_pass in walk.forward():
            layer_pass.run()
        total = sum(float(self.summed(walk.last()[batch], batch).sum()) for batch in walk.batches)
        return total / walk.input_ids.numel()

    def summed(self, hidden_BTH: Tensor, batch: slice) -> Tensor:
        """Return the sum over the tokens of each sequence in nats, float64 [B].

        Args:
            hidden_BTH: last hidden states of the other model.
            batch: the rows of the text that they belong to.
        """
        return self._measure(hidden_BTH, batch, None)

    def with_gradient(self, hidden_BTH: Tensor, batch: slice) -> tuple[Tensor, Tensor]:
        """Return the same sums, and their gradient with respect to the last hidden states, [B, T, H] in their dtype."""
        gradient_BTH = torch.zeros_like(hidden_BTH)
        return self._measure(hidden_BTH, batch, gradient_BTH), gradient_BTH

    def _measure(self, hidden_BTH: Tensor, batch: slice, gradient_BTH: Tensor | None) -> Tensor:
        sums_B = torch.zeros(len(hidden_BTH), dtype=torch.float64)
        dense_BTH = self._walk.last()[batch]
        positions = max(1, MAX_LOGITS // (2 * self._decoder.head.weight.shape[0]))
        for row in range(len(hidden_BTH)):
            for chunk in torch.arange(hidden_BTH.shape[1]).split(positions):
                with torch.no_grad():
                    dense = self._log_probabilities(dense_BTH[row, chunk])
                last = hidden_BTH[row, chunk].detach().requires_grad_(gradient_BTH is not None)
                with torch.set_grad_enabled(gradient_BTH is not None):
                    own = self._log_probabilities(last)
                    divergence = nn.functional.kl_div(own, dense, reduction="sum", log_target=True)
                if gradient_BTH is not None:
                    gradient_BTH[row, chunk] = torch.autograd.grad(divergence, last)[0].to(gradient_BTH)
                sums_B[row] += divergence.item()
        return sums_B

    def _log_probabilities(self, hidden_TH: Tensor) -> Tensor:
        return self._decoder.logits(hidden_TH).float().log_softmax(-1)
