"""Token perplexity over non-overlapping windows, with its protocol.

B batch | T tokens of a window | V vocab
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hgsp.console.progress import Progress, silent
from hgsp.data.calibration import tokenize
from hgsp.data.texts import EVALUATE, Text, load_text
from hgsp.errors import InputError, NumericalError
from hgsp.models.decoder import eval_mode
from hgsp.models.half_precision import fp32_matmul_fallback
from hgsp.models.tokenizers import check_token_ids, check_vocabulary

DEFAULT_SEQ_LEN = 2048
#: Logits cast to float32 at a time; on a CPU 8 MiB, which the C allocator reuses instead of returning them.
FLOAT_LOGITS_ON_CPU, FLOAT_LOGITS = 1 << 21, 1 << 26
#: Mean NLL whose exp overflows float64.
MAX_MEAN_NLL = 700.0


@dataclass(frozen=True)
class Perplexity:
    """A perplexity, ``ppl = exp(nll / tokens)``: nll in nats, summed over ``tokens`` predicted tokens.

    ``stderr`` is the standard error of ppl from the windows' mean losses (delta method), None for one window. Windows
    do not overlap: ``stride`` is ``seq_len``, minus one if each begins with BOS (``bos``). ``last_window``: a shorter
    last window was ``"scored"``, or ``"dropped"`` as in many published tables.
    """

    ppl: float
    stderr: float | None
    nll: float
    tokens: int
    windows: int
    seq_len: int
    stride: int
    bos: bool
    dtype: str
    dataset: str
    split: str
    source: str
    sha256: str
    join: str
    last_window: str = "scored"

    def protocol(self) -> str:
        """Describe the protocol in one line."""
        return (
            f"token PPL on {self.dataset} ({self.split}, {self.source}, sha256 {self.sha256[:12]}, rows joined with "
            f"{self.join}), {self.windows} windows of {self.seq_len} tokens, stride {self.stride}, "
            f"{'BOS first' if self.bos else 'no BOS'}, short last window {self.last_window}, {self.tokens} predicted "
            f"tokens, {self.dtype}"
        )


class PPLMetric(Mapping[str, float]):
    """A mapping from dataset name to perplexity, measured on construction.

    ``PPLMetric(model, tokenizer, ["wikitext2"])["wikitext2"]`` is a float; ``details[name]`` holds the
    :class:`Perplexity` with its protocol.

    Args:
        model: a causal LM of transformers; moved to ``device`` if one is given.
        tokenizer: the tokenizer the model was trained with.
        datasets: ``wikitext2`` (or ``wikitext``), ``ptb``, ``c4``, ``builtin``, or paths of text files.
        seq_len: window length in tokens; 2048 if unset, or the model's limit if that is lower.
        device: None leaves the model where it is.
        batch_size: windows per forward pass; changes results by float rounding at most.
        add_bos: begin every window with the BOS token, which is not predicted.
        max_windows: use only the first windows; None = all.
        drop_last: drop a short last window, as GPTQ, SparseGPT and Wanda do.
        data_dir: folder with local texts, see docs/DATA.md.

    Raises:
        InputError: unknown dataset, missing text, or a tokenizer larger than the model's vocabulary.
        NumericalError: the loss is not finite.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        datasets: Sequence[str] = ("wikitext2",),
        seq_len: int | None = None,
        device: str | torch.device | None = None,
        *,
        batch_size: int = 1,
        add_bos: bool = False,
        max_windows: int | None = None,
        drop_last: bool = False,
        data_dir: str | Path | None = None,
        progress: Progress = silent,
    ) -> None:
        texts = {name: load_text(name, EVALUATE, data_dir) for name in datasets}
        if device is not None:
            model.to(device)
        self.details: dict[str, Perplexity] = {
            name: perplexity(
                model,
                tokenizer,
                text,
                seq_len=seq_len,
                batch_size=batch_size,
                add_bos=add_bos,
                max_windows=max_windows,
                drop_last=drop_last,
                progress=progress,
            )
            for name, text in texts.items()
        }

    def __getitem__(self, name: str) -> float:
        return self.details[name].ppl

    def __iter__(self) -> Iterator[str]:
        return iter(self.details)

    def __len__(self) -> int:
        return len(self.details)

    def __repr__(self) -> str:
        return repr(dict(self))


@torch.inference_mode()
@fp32_matmul_fallback()
def perplexity(
    model: Any,
    tokenizer: Any,
    text: Text,
    *,
    seq_len: int | None = None,
    batch_size: int = 1,
    add_bos: bool = False,
    max_windows: int | None = None,
    drop_last: bool = False,
    progress: Progress = silent,
) -> Perplexity:
    """Return exp(total NLL / predicted tokens) over non-overlapping windows.

    Losses are float32 per token and float64 over tokens; a short last window is weighted by its tokens.

    Raises:
        InputError: a window longer than the model allows, a text too short, or a tokenizer that does not fit.
        NumericalError: a loss is not finite, or its exp overflows.
    """
    seq_len = window_length(model.config, seq_len)
    num_embeddings = model.get_input_embeddings().weight.shape[0]
    check_vocabulary(num_embeddings, tokenizer)
    bos = bos_token(tokenizer) if add_bos else None
    windows = windows_of(text, tokenizer, seq_len, bos, max_windows, drop_last=drop_last)
    check_token_ids(max(int(window.max()) for window in windows), num_embeddings, tokenizer, text.name)
    nll: list[float] = []
    batches = list(_batches(windows, batch_size))
    with eval_mode(model):
        for batch in progress(batches, f"perplexity on {text.name}", len(batches)):
            nll += _finite(_window_nll(model, torch.stack(batch)), text.name, len(nll))
    predicted = [len(window) - 1 for window in windows]
    total, tokens = math.fsum(nll), sum(predicted)
    if total / tokens > MAX_MEAN_NLL:
        raise NumericalError(f"the mean loss on {text.name} is {total / tokens:.0f} nats: its perplexity overflows")
    ppl = math.exp(total / tokens)
    return Perplexity(
        ppl=ppl,
        stderr=_standard_error(nll, predicted, ppl),
        nll=total,
        tokens=tokens,
        windows=len(windows),
        seq_len=seq_len,
        stride=seq_len - (bos is not None),
        bos=bos is not None,
        dtype=str(model.dtype).removeprefix("torch."),
        dataset=text.name,
        split=text.split,
        source=text.source,
        sha256=text.sha256,
        join=text.join,
        last_window="dropped" if drop_last else "scored",
    )


def window_length(config: Any, seq_len: int | None) -> int:
    """Return the window length: the requested one, else 2048 or the positions of the model if those are fewer.

    Raises:
        InputError: fewer than two tokens, or more than the model allows.
    """
    limit = getattr(config, "max_position_embeddings", None)
    if seq_len is None:
        return min(DEFAULT_SEQ_LEN, limit or DEFAULT_SEQ_LEN)
    if seq_len < 2 or (limit is not None and seq_len > limit):
        raise InputError(
            expected=f"a window of 2 to {limit} tokens", got=str(seq_len), remedy="change the sequence length"
        )
    return seq_len


def windows_of(
    text: Text,
    tokenizer: Any,
    seq_len: int,
    bos: int | None = None,
    max_windows: int | None = None,
    *,
    drop_last: bool = False,
) -> list[Tensor]:
    """Tokenize a text and split it as ``split_windows`` does.

    Raises:
        InputError: the text is too short for one window.
    """
    windows = split_windows(tokenize(text.content, tokenizer), seq_len, bos, max_windows, drop_last=drop_last)
    if not windows:
        needed = f"{seq_len} tokens in {text.name}, a full window" if drop_last else f"two tokens in {text.name}"
        raise InputError(expected=f"at least {needed}", got="fewer", remedy="evaluate on a longer text")
    return windows


def split_windows(
    ids: Tensor, seq_len: int, bos: int | None, max_windows: int | None, *, drop_last: bool = False
) -> list[Tensor]:
    """Split token ids [N] into consecutive windows of at most ``seq_len`` tokens, BOS included.

    With ``bos`` every window begins with exactly one: leading BOS tokens of the text are removed. Windows of one token
    have nothing to predict and are dropped.
    """
    if bos is not None:
        others = (ids != bos).nonzero()
        ids = ids[int(others[0]) if len(others) else len(ids) :]
    chunks = ids.split(seq_len - (bos is not None))[:max_windows]
    first = torch.tensor([] if bos is None else [bos], dtype=ids.dtype)
    windows = [torch.cat([first, chunk]) for chunk in chunks]
    return [window for window in windows if len(window) > 1 and (len(window) == seq_len or not drop_last)]


def _finite(nll: list[float], name: str, first_window: int) -> list[float]:
    for window, loss in enumerate(nll, first_window):
        if not math.isfinite(loss):
            raise NumericalError(
                f"the loss on window {window} of {name} is {loss}; a bf16-trained model may overflow in float16"
            )
    return nll


def _window_nll(model: Any, input_ids_BT: Tensor) -> list[float]:
    """Return the summed next-token NLL of each window in nats, float32 per token and float64 over tokens."""
    input_ids = input_ids_BT.to(model.get_input_embeddings().weight.device)
    logits = model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), use_cache=False).logits
    totals = []
    at_once = FLOAT_LOGITS_ON_CPU if logits.device.type == "cpu" else FLOAT_LOGITS
    rows = max(1, at_once // logits.shape[-1])
    for row_logits, row_ids in zip(logits[:, :-1], input_ids[:, 1:], strict=True):
        pieces = row_logits.split(rows)
        targets = row_ids.to(row_logits.device).split([len(piece) for piece in pieces])
        nll = [
            nn.functional.cross_entropy(piece.float(), target, reduction="none")
            for piece, target in zip(pieces, targets, strict=True)
        ]
        totals.append(float(torch.cat(nll).cpu().double().sum()))  # on the CPU: mps has no float64
    return totals


def _batches(windows: Sequence[Tensor], batch_size: int) -> Iterator[list[Tensor]]:
    """Batch windows of equal length, so that nothing is padded; only the last window can be shorter."""
    batch: list[Tensor] = []
    for window in windows:
        if batch and (len(batch) == batch_size or len(window) != len(batch[0])):
            yield batch
            batch = []
        batch.append(window)
    yield batch


def _standard_error(nll: Sequence[float], predicted: Sequence[int], ppl: float) -> float | None:
    if len(nll) < 2:
        return None
    means = torch.tensor([loss / count for loss, count in zip(nll, predicted, strict=True)], dtype=torch.float64)
    return ppl * float(means.std() / math.sqrt(len(means)))


def bos_token(tokenizer: Any) -> int:
    """Return the id of the BOS token.

    Raises:
        InputError: the tokenizer has none.
    """
    if tokenizer.bos_token_id is None:
        raise InputError(expected="a tokenizer with a BOS token", got="one without", remedy="do not set add_bos")
    return int(tokenizer.bos_token_id)
