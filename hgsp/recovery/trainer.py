"""The Trainer of a recovery and its sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer

from hgsp.recovery.losses import Objective, TeacherTopK
from hgsp.recovery.samples import Sample
from hgsp.recovery.teacher import CachedTeacher, Teacher


@dataclass(frozen=True)
class Sequences(Dataset[dict[str, Any]]):
    """Training sequences, with the teacher's cached top k if there is a cache."""

    samples: Sequence[Sample]
    teacher: CachedTeacher | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = {"sample": self.samples[index]}
        if self.teacher is not None:
            row["teacher"] = self.teacher.of(index)
        return row


class RecoveryTrainer(Trainer):
    """A Trainer whose loss is cross-entropy, KL to the teacher, or both, per token that counts."""

    def __init__(self, *, objective: Objective, teacher: Teacher | None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.model_accepts_loss_kwargs = True  # the loss is already divided by the tokens of the whole update
        self._objective, self._teacher = objective, teacher
        held_out = [] if self.eval_dataset is None else [sample.num_learned for sample in self.eval_dataset.samples]
        self._tokens_per_held_out_row = sum(held_out) / max(1, len(held_out))

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss per learned token of the whole update; ``inputs`` are [B, T], cached top k [B, T, k].

        Of a held-out batch it is the loss per row over the mean tokens of all held-out rows: its mean over the rows, as
        the Trainer takes it, is that over all tokens, however they are batched.
        """
        labels = inputs.pop("labels")
        cached = [inputs.pop(name) for name in ("teacher_values", "teacher_tokens") if name in inputs]
        outputs = model(**inputs, use_cache=False)
        target = TeacherTopK(*cached) if cached else None if self._teacher is None else self._teacher(inputs)
        loss = self._objective.summed(outputs.logits, labels, target)
        if model.training:  # tokens of all processes, whose losses are averaged
            loss = loss * self.accelerator.num_processes / num_items_in_batch
        else:
            loss = loss / (len(labels) * self._tokens_per_held_out_row)
        return (loss, outputs) if return_outputs else loss
