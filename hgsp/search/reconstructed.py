"""The divergence of reconstructed plans on text that they were not refitted to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from hgsp.data.calibration import Calibration
from hgsp.layerwise.walk import LayerWalk
from hgsp.models.decoder import Decoder
from hgsp.pruning.plan import PrunePlan
from hgsp.pruning.surgery import Surgery
from hgsp.pruning.zero_padded import zero_padded_decoder
from hgsp.reconstruction.reconstruct import ReconstructionOptions, check_enough, plan_for, reconstruct
from hgsp.reconstruction.resume import ResumeState
from hgsp.search.kl import DivergenceFromDense

#: One of this many sequences measures a plan, which is reconstructed from the others.
MEASURED = 4


class ReconstructedDivergence:
    """Refits a plan on three quarters of the text, and measures KL(dense || pruned) on the last one.

    A context manager, within which plans can be measured.

    Args:
        decoder: the dense model, in memory or offloaded; it is not changed.
        read: returns a dense tensor by its name; default: the parameters of the model.
        tensors_dir: folder for refitted tensors, removed after every plan; None keeps them in memory.

    Raises:
        InputError: fewer than three sequences.
    """

    def __init__(
        self,
        decoder: Decoder,
        calibration: Calibration,
        options: ReconstructionOptions,
        *,
        read: Callable[[str], Tensor] | None = None,
        tensors_dir: Path | None = None,
    ) -> None:
        self._decoder, self._options = decoder, options
        self._read, self._tensors_dir = read, tensors_dir
        check_enough_to_search(calibration)
        num_fit = len(calibration.input_ids) - max(1, len(calibration.input_ids) // MEASURED)
        self._fit = replace(calibration, input_ids=calibration.input_ids[:num_fit])
        self._measured_ids = calibration.input_ids[num_fit:]
        self.fingerprint = f"profile, {options.method}, {calibration.sha256}"

    def __enter__(self) -> ReconstructedDivergence:
        self._divergence = DivergenceFromDense(
            self._decoder, self._measured_ids, self._options.batch_size, self._options.spill_dir
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._divergence.close()

    def of(self, plan: PrunePlan) -> float:
        """Return the divergence of the reconstructed model in nats per token."""
        plan = plan_for(self._options.method, plan)
        surgery = Surgery(self._decoder.model, plan, read=self._read)
        with self._refitted_on_disk(plan) as resume:
            fitted = reconstruct(self._decoder, surgery, self._fit, self._options, resume=resume)
            zero_padded = zero_padded_decoder(self._decoder, surgery.replacing(fitted.tensors))
            batch_size, spill_dir = self._options.batch_size, self._options.spill_dir
            with LayerWalk(zero_padded, self._measured_ids, batch_size, spill_dir=spill_dir) as walk:
                return self._divergence.per_token(walk)

    @contextmanager
    def _refitted_on_disk(self, plan: PrunePlan) -> Iterator[ResumeState | None]:
        if self._tensors_dir is None:
            yield None
            return
        resume = ResumeState(self._tensors_dir, f"{self.fingerprint} {plan.layers}")
        try:
            yield resume
        finally:
            resume.close()


def quick_reconstruction(
    reconstruct: str, batch_size: int, spill_dir: Path | None, frozen: frozenset[int]
) -> ReconstructionOptions:
    """Return how the plans of a search are refitted: whole blocks would take too long for each of them.

    Args:
        reconstruct: how the last plan will be, a value of ``--reconstruct``.
    """
    method = "bias" if reconstruct == "bias" else "lstsq"
    return ReconstructionOptions(method, batch_size, spill_dir, frozen)


def check_enough_to_search(calibration: Calibration) -> None:
    """Refuse a calibration with too few sequences to reconstruct a plan and to measure it.

    Raises:
        InputError: fewer than three sequences.
    """
    check_enough(calibration, 3, "to search with: to fit, to hold out and to measure")
