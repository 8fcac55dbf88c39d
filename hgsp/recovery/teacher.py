"""The dense teacher: run during training, or once before with its top k cached on disk.

T tokens | V vocab | k top tokens of the teacher
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hgsp.console.disk import check_free_space
from hgsp.console.json_files import file_bytes, json_object
from hgsp.console.progress import Progress, silent
from hgsp.environment import reserve_space, write_json
from hgsp.errors import InputError
from hgsp.models.loading import ModelSource, inspect_model, load_dense
from hgsp.models.offload import load_offloaded
from hgsp.models.processes import is_main_process, wait_for_all
from hgsp.models.stored_tensors import check_stored
from hgsp.recovery.collator import Collator
from hgsp.recovery.config import TrainingConfig
from hgsp.recovery.losses import TeacherTopK, top_of
from hgsp.recovery.samples import Sample

LOG = logging.getLogger(__name__)

TEACHER_DTYPE = "bfloat16"
CACHED_BYTES_PER_TOKEN = 2 + 4  # float16 log-probability and int32 token id


@dataclass(frozen=True)
class Teacher:
    """A model in eval mode and the form in which its logits are used."""

    model: Any
    top_k: int
    temperature: float

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor | TeacherTopK:
        """Return logits [B, T, V], or their top k, on the device of ``inputs``."""
        device = self.model.get_input_embeddings().weight.device
        logits = self.model(**{name: value.to(device) for name, value in inputs.items()}, use_cache=False).logits
        if self.top_k:
            return TeacherTopK(
                *(part.to(inputs["input_ids"].device) for part in top_of(logits, self.top_k, self.temperature))
            )
        return logits.to(inputs["input_ids"].device)


@dataclass(frozen=True)
class CachedTeacher:
    """The teacher's top k at every position of every sequence, memory-mapped."""

    values: NDArray[np.float16]
    tokens: NDArray[np.int32]
    offsets: tuple[int, ...]

    def of(self, index: int) -> tuple[Tensor, Tensor]:
        """Return log-probabilities float32 [T, k] and ids int64 [T, k] of one sequence."""
        rows = slice(self.offsets[index], self.offsets[index + 1])
        values, tokens = self.values[rows].astype(np.float32), self.tokens[rows].astype(np.int64)
        return torch.from_numpy(values), torch.from_numpy(tokens)


def inspect_teacher(config: TrainingConfig, vocabulary: int) -> ModelSource | None:
    """Return the source of ``--distill_from`` without loading it, None if unset.

    Raises:
        InputError: an unsupported model, files that do not hold its weights, another vocabulary than the student's, or
            a top k larger than that.
    """
    if config.distill_from is None:
        return None
    source = inspect_model(config.distill_from, dequantize=True)
    if not source.is_gguf:
        check_stored(source.name, source.skeleton)
    found = source.config.vocab_size
    check_same_vocabulary(found, vocabulary, config.distill_from)
    if config.distill_top_k >= found:
        raise InputError(
            expected=f"--distill_top_k below {found}", got=str(config.distill_top_k), remedy="0 takes all tokens"
        )
    return source


def check_same_vocabulary(found: int, vocabulary: int, name: str) -> None:
    """Refuse a teacher whose vocabulary is not the student's.

    Raises:
        InputError: the numbers of tokens differ.
    """
    if found != vocabulary:
        raise InputError(
            expected=f"a teacher with the student's vocabulary of {vocabulary} tokens",
            got=f"{found} in {name}",
            remedy="pass the dense model that was pruned",
        )


def load_teacher(config: TrainingConfig, source: ModelSource, device: str) -> Teacher:
    """Load the teacher in bfloat16 or ``--dtype``, whole or layer by layer."""
    device, dtype = config.distill_device or device, config.dtype or TEACHER_DTYPE
    if config.distill_offload:
        model = load_offloaded(source, dtype, device)[0].model
    else:
        model = load_dense(source, dtype, device)
    return Teacher(model.requires_grad_(False), config.distill_top_k, config.distill_temperature)


def teacher_outputs(
    config: TrainingConfig,
    source: ModelSource | Teacher | None,
    sets: Sequence[Sequence[Sample]],
    collator: Collator,
    device: str,
    cache_dir: Path,
    progress: Progress = silent,
) -> tuple[Teacher | None, list[CachedTeacher | None]]:
    """Return the teacher, or its cached top k for each of the sets; neither without a teacher.

    The main process writes the caches in ``cache_dir`` while the others wait.

    Raises:
        InputError: the disk is too small for the caches.
    """
    nothing: list[CachedTeacher | None] = [None] * len(sets)
    if source is None or isinstance(source, Teacher):
        return source, nothing
    if not config.distill_cache:
        return load_teacher(config, source, device), nothing
    folders = [cache_dir / str(number) for number in range(len(sets))]
    missing = [pair for pair in zip(folders, sets, strict=True) if _open_cache(*pair, config) is None]
    if missing and is_main_process():
        needed = sum(_offsets(samples)[-1] for _, samples in missing) * config.distill_top_k * CACHED_BYTES_PER_TOKEN
        check_free_space(cache_dir, needed, "--distill_cache", "use a smaller --distill_top_k, or no --distill_cache")
        teacher = load_teacher(config, source, device)
        for folder, samples in missing:
            _write_cache(folder, teacher, samples, config, collator, progress)
    wait_for_all()
    return None, [_open_cache(*pair, config) for pair in zip(folders, sets, strict=True)]


def _open_cache(folder: Path, samples: Sequence[Sample], config: TrainingConfig) -> CachedTeacher | None:
    """Open the cache in ``folder`` if it is of exactly these sequences."""
    description, offsets = folder / "cache.json", _offsets(samples)
    if not description.is_file():
        return None
    try:
        if json_object(file_bytes(description)) != _description(samples, config):
            return None
        values, tokens = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("values", "tokens"))
        shape = (offsets[-1], config.distill_top_k)
        if [(part.dtype, part.shape) for part in (values, tokens)] != [(np.float16, shape), (np.int32, shape)]:
            raise ValueError("another size than the samples need")
    except (OSError, EOFError, ValueError) as error:
        LOG.warning("the teacher cache %s is damaged (%s); computing it again", folder, error)
        return None
    return CachedTeacher(values, tokens, offsets)


def _write_cache(
    folder: Path,
    teacher: Teacher,
    samples: Sequence[Sample],
    config: TrainingConfig,
    collator: Collator,
    progress: Progress,
) -> None:
    """Run the teacher on every sequence. The description is written last: it makes the cache valid."""
    folder.mkdir(parents=True, exist_ok=True)
    offsets = _offsets(samples)
    needed = offsets[-1] * config.distill_top_k * CACHED_BYTES_PER_TOKEN
    LOG.info("teacher cache: top %d of %d tokens, %.2f GiB on disk", config.distill_top_k, offsets[-1], needed / 2**30)
    shape = (offsets[-1], config.distill_top_k)
    values = np.lib.format.open_memmap(folder / "values.npy", "w+", dtype=np.float16, shape=shape)
    tokens = np.lib.format.open_memmap(folder / "tokens.npy", "w+", dtype=np.int32, shape=shape)
    for path in (folder / "values.npy", folder / "tokens.npy"):
        reserve_space(path, path.stat().st_size)
    starts = range(0, len(samples), config.micro_batch_size)
    for start in progress(starts, "teacher", len(starts)):
        part = samples[start : start + config.micro_batch_size]
        batch = collator([{"sample": sample} for sample in part])
        del batch["labels"]
        top = teacher(batch)
        assert isinstance(top, TeacherTopK)
        for row, sample in enumerate(part):
            length = len(sample.input_ids)
            rows = slice(offsets[start + row], offsets[start + row] + length)
            values[rows] = top.values[row, :length].cpu().numpy()
            tokens[rows] = top.tokens[row, :length].cpu().numpy()
    values.flush()
    tokens.flush()
    write_json(_description(samples, config), folder / "cache.json")


def _offsets(samples: Sequence[Sample]) -> tuple[int, ...]:
    return tuple(np.cumsum([0, *(len(sample.input_ids) for sample in samples)]).tolist())


def _description(samples: Sequence[Sample], config: TrainingConfig) -> dict[str, Any]:
    content = hashlib.sha256()
    for sample in samples:
        content.update(sample.input_ids.tobytes() + repr(sample.starts).encode())
    return {
        "parent": config.distill_from,
        "top_k": config.distill_top_k,
        "temperature": config.distill_temperature,
        "sequences": content.hexdigest(),
    }
