"""The Python interface: load, calibrate, score, prune and save (``import hgsp`` resolves these names)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hgsp.console.checksums import write_checksums
from hgsp.console.flags import require
from hgsp.console.progress import Progress, silent
from hgsp.console.result_folders import new_folder
from hgsp.data.calibration import Calibration, build_calibration
from hgsp.data.texts import CALIBRATE, Text, dataset_names, load_text
from hgsp.errors import InputError
from hgsp.models.checkpoint import save_pruned
from hgsp.models.decoder import Decoder, eval_mode
from hgsp.models.devices import resolve_device
from hgsp.models.fusion import unfused
from hgsp.models.geometry import Geometry, geometry_of
from hgsp.models.loaded import LoadedModel
from hgsp.models.loading import inspect_model, load_dense
from hgsp.models.prunable import check_prunable
from hgsp.models.tokenizers import check_token_ids, load_own_tokenizer
from hgsp.pipeline.decision import SelectionOptions, decide
from hgsp.pipeline.recipes import Recipe
from hgsp.pruning.budget import Budget
from hgsp.pruning.names import RATIO_OF
from hgsp.pruning.plan import PrunePlan
from hgsp.pruning.shape_rules import ShapeRules, budget_for_ratio
from hgsp.pruning.surgery import Surgery, apply_plan
from hgsp.reconstruction.reconstruct import ReconstructionOptions, plan_for
from hgsp.reconstruction.reconstruct import reconstruct as reconstruct_weights
from hgsp.scoring.score import ScoringOptions
from hgsp.scoring.score_model import score_model
from hgsp.scoring.scores import Scores as GroupScores
from hgsp.scoring.slots import CHANNELS

LOG = logging.getLogger(__name__)


def load(name: str, *, dtype: str = "bfloat16", device: str | None = None, dequantize: bool = False) -> tuple[Any, Any]:
    """Load a dense model and its tokenizer.

    Args:
        name: hub id, local folder, or a .gguf file, which is de-quantised.
        dtype: ``bfloat16``, ``float16`` or ``float32``.
        device: None is the best available, ``"auto"`` spreads the model over what accelerate finds.
        dequantize: load a checkpoint in MXFP4 too, de-quantised.

    Returns:
        The causal language model in eval mode, and the tokenizer.

    Raises:
        InputError: not found, not a supported architecture, or files that do not hold the model's weights.
    """
    source = inspect_model(name, dtype, dequantize=dequantize)
    tokenizer, surplus = load_own_tokenizer(source)
    for warning in [*source.warnings, *surplus]:
        LOG.warning("%s", warning)
    return load_dense(source, dtype, resolve_device(device)), tokenizer


def calibration(
    texts: str | Text | Sequence[str | Text],
    tokenizer: Any,
    *,
    num_sequences: int = 128,
    seq_len: int = 256,
    seed: int = 42,
    data_dir: str | Path | None = None,
) -> Calibration:
    """Draw calibration sequences [num_sequences, seq_len] from one text, or as many from each of several.

    Args:
        texts: ``wikitext2``, ``ptb``, ``c4``, ``builtin``, a path to a text, .jsonl, .csv or .parquet
            file, or a ``Text``.
        data_dir: folder of local copies; None is the environment variable ``HGSP_DATA_DIR``.

    Raises:
        InputError: a text is unknown, not available, or too short.
    """
    listed = [texts] if isinstance(texts, (str, Text)) else list(texts)
    named = [name for text in listed for name in (dataset_names(text) if isinstance(text, str) else [text])]
    read = [load_text(text, CALIBRATE, data_dir) if isinstance(text, str) else text for text in named]
    return build_calibration(read, tokenizer, num_sequences, seq_len, seed)


@dataclass(frozen=True, repr=False)
class Scores:
    """Importance of every group of one model, to select plans of any size from.

    ``groups`` are the importances with their method, ``geometry`` the sizes of the dense model.
    """

    groups: GroupScores
    geometry: Geometry

    def select(
        self,
        ratio: float,
        *,
        ratio_of: str = "all",
        temperature: float = 0.0,
        tau: float | None = None,
        epsilon: float | None = None,
        normalization: str = "auto",
        depth_slope: float = 0.0,
        attention_slope: float = 0.0,
        shape_rules: ShapeRules | None = None,
    ) -> PrunePlan:
        """Select the groups that leave for a fraction of the parameters, as the pruning command does.

        Args:
            ratio: in [0, 1).
            ratio_of: ``all`` parameters, or those of the ``decoder`` layers.
            temperature, tau, epsilon: the H-GSP prior; 0 is global importance only.
            normalization: ``auto`` is the method's own.
            depth_slope: MLP scores are multiplied by e^-slope in the first layer up to e^slope in the last.
            attention_slope: the same for the scores of KV groups.
            shape_rules: minimum sizes, multiples of channels, equal layers; the default is the command's.

        Raises:
            InputError: an unknown denominator, a ratio out of reach, equal layers of a model whose layers differ, or a
                prior for scores made without text.
        """
        rules = shape_rules or ShapeRules()
        recipe = Recipe(
            temperature=temperature,
            tau=tau,
            epsilon=epsilon,
            score_normalization=normalization,
            depth_slope=depth_slope,
            attention_slope=attention_slope,
        )
        rules.check_equal_layers(self.geometry)
        require(ratio_of in RATIO_OF, "ratio_of", f"one of {', '.join(RATIO_OF)}", ratio_of, "all is the default")
        budget = Budget(budget_for_ratio(self.geometry, ratio, rules, ratio_of))
        return decide(self.groups, self.geometry, SelectionOptions(budget, rules), recipe).plan

    def save(self, path: str | Path) -> None:
        """Write the scores to an .npz file, the same as ``hgsp score`` writes."""
        self.groups.write(Path(path))

    @classmethod
    def load(cls, path: str | Path, model: Any) -> Scores:
        """Read scores that belong to ``model``.

        Raises:
            InputError: no scores file, or scores of other weights.
        """
        model, groups = unfused(model), GroupScores.read(Path(path))
        groups.check_belongs_to(_in_memory(model))
        scored = any(CHANNELS in layer for layer in groups.by_layer)
        return cls(groups, geometry_of(model).with_expert_channels(scored))

    def _repr_html_(self) -> str:
        kinds = self.geometry.kinds
        cells = [
            (index, *(f"{layer[kind.name].sum():.4g}" if kind.name in layer else "" for kind in kinds))
            for index, layer in enumerate(self.groups.by_layer)
        ]
        first, *others = (kind.label for kind in kinds)
        head = (
            f"<tr><th>layer</th><th>importance of {first}</th>{''.join(f'<th>of {name}</th>' for name in others)}</tr>"
        )
        rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in cells)
        return f"<table><caption>{self!r}</caption>{head}{rows}</table>"

    def __repr__(self) -> str:
        num_groups = sum(sum(shape.block_sizes) for shape in self.geometry.shapes)
        return f"Scores({self.groups.method}: {num_groups:,} groups in {self.geometry.num_layers} layers)"


def score(
    model: Any,
    text: Calibration | None = None,
    method: str = "taylor",
    *,
    labels: str = "text",
    expert_channels: bool = False,
    batch_size: int = 4,
    checkpointing: bool = False,
    spill_dir: str | Path | None = None,
    seed: int = 42,
    progress: Progress = silent,
) -> Scores:
    """Score every group of a dense model; its weights and ``requires_grad`` flags stay as they are.

    Args:
        model: a causal language model of a supported family, in memory.
        text: calibration sequences; ``magnitude`` and ``random`` need none.
        method: a name of ``--importance_method``.
        labels: ``text``, or ``model`` for gradients of tokens that the model draws itself.
        expert_channels: of a mixture of experts, score the channels inside experts too, so that they may leave.
        batch_size: sequences per call of a layer; changes scores by float rounding at most.
        checkpointing: keep fewer hidden states and compute them again.
        spill_dir: folder for hidden states, None is memory.

    Raises:
        InputError: an unknown method, an unsupported model, a method that needs text without one, or text with a
            token that the model has no embedding for.
        NumericalError: a statistic is not finite.
    """
    check_prunable(model.config.to_dict())
    model = unfused(model)
    _check_text(text, model)
    options = ScoringOptions(batch_size, checkpointing, None if spill_dir is None else Path(spill_dir))
    with eval_mode(model):
        groups = score_model(
            _in_memory(model),
            method,
            text,
            options,
            base_model=model.config.name_or_path,
            layer_importance=None if text is None else "cosine",
            seed=seed,
            labels=labels,
            expert_channels=expert_channels,
            progress=progress,
        )
    return Scores(groups, geometry_of(model).with_expert_channels(expert_channels))


def prune(
    model: Any,
    plan: PrunePlan,
    *,
    reconstruct: Calibration | None = None,
    method: str = "lstsq",
    batch_size: int = 4,
    inplace: bool = False,
    progress: Progress = silent,
) -> Any:
    """Return the smaller model that a plan describes, its remaining weights refitted if there is text to refit on.

    Args:
        reconstruct: calibration sequences; the last eighth judges, the others fit. None keeps the weights.
        method: ``lstsq`` (least squares on the output projections), ``blocks`` (then all weights of each block too) or
            ``bias`` (biases of the output projections alone).
        inplace: consume the dense model, so that no more than one layer exists twice; else it is not changed.

    Raises:
        InputError: a plan of another model, too few sequences, or text with a token without an embedding.
        NumericalError: the pruned model's hidden states are not finite.
    """
    given, model, tensors = model, unfused(model), None
    if reconstruct is not None:
        _check_text(reconstruct, model)
        plan = plan_for(method, plan)
        options = ReconstructionOptions(method, batch_size)
        with eval_mode(model):
            found = reconstruct_weights(Decoder(model), Surgery(model, plan), reconstruct, options, progress=progress)
        tensors = found.tensors
    if inplace and given is not model:
        given.model.layers.to("meta")  # it shares the memory that is to be freed layer by layer
    return apply_plan(model, plan, tensors, inplace=inplace)


def save(model: Any, tokenizer: Any, folder: str | Path, *, overwrite: bool = False, with_bin: bool = False) -> Path:
    """Write a pruned model and its tokenizer as a Hugging Face folder; it appears whole or not at all.

    Args:
        tokenizer: its files are copied from where it was loaded, unless transformers saves it differently from one
            loaded there again, or it is from a .gguf file: then it is written as it is in memory.
        overwrite: replace the model that is in the folder.
        with_bin: write the self-contained ``pruned_model.bin`` too.

    Returns:
        The folder.

    Raises:
        InputError: the folder exists, or is to be replaced but holds no model.
    """
    target = Path(folder)
    if overwrite and target.exists() and not (target / "config.json").is_file():
        raise InputError(
            expected="a model's folder to overwrite",
            got=f"{target} without config.json",
            remedy="choose another folder",
        )
    with new_folder(target, overwrite) as partial:
        save_pruned(model, tokenizer, partial, with_bin=with_bin)
        write_checksums(partial)
    return target


def _check_text(text: Calibration | None, model: Any) -> None:
    """Refuse calibration sequences with a token that the model has no embedding for."""
    if text is not None:
        num_embeddings = model.get_input_embeddings().weight.shape[0]
        check_token_ids(int(text.input_ids.max()), num_embeddings, None, text.source)


def _in_memory(model: Any) -> LoadedModel:
    return LoadedModel(Decoder(model), None, str(model.dtype).removeprefix("torch."))
