"""The model card (README.md) of a result: metadata, measurements, how to load it, how it was made, and its limits."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from hgsp.console.report_schema import AFTER, BEFORE, PRUNING_REPORT, RECOVERY_REPORT
from hgsp.environment import write_atomically
from hgsp.models.families import family_named, is_pruned_type
from hgsp.models.kinds import GROUP_KINDS, kinds_among
from hgsp.models.model_cards import CARD, hub_id_of, is_own_card, read_card, read_text, signed

#: Entries of the base model's metadata that hold for a smaller model too.
_INHERITED = ("license", "license_name", "license_link", "language")


def write_model_card(folder: Path, parent: str, target: Path, repo_id: str | None = None) -> None:
    """Write the model card of a finished result; a card in ``target`` that somebody wrote or edited is kept instead.

    Args:
        folder: the result, with its reports.
        parent: hub id, folder or file of the model that was pruned or recovered.
        target: the final place of ``folder``, perhaps with an earlier result.
        repo_id: where the result will be on the hub.
    """
    earlier = target / CARD
    if earlier.is_file() and not is_own_card(read_text(earlier)):
        shutil.copyfile(earlier, folder / CARD)
        return
    pruning, recovery = (_read(folder / name) for name in (PRUNING_REPORT, RECOVERY_REPORT))
    metadata = _metadata(parent, recovered=bool(recovery))
    config = _read(folder / "config.json")
    sections = [
        _title(parent, metadata, pruning, recovery),
        _measured(pruning, recovery),
        _usage(repo_id or target.name, config),
        _origin(pruning, recovery),
        _limits(pruning, recovery),
    ]
    text = f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(filter(None, sections)) + "\n"
    write_atomically(folder / CARD, signed(text))


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _metadata(parent: str, *, recovered: bool) -> ModelCardData:
    """Return the metadata: of the base model's card where there is one, with our own tags."""
    known = _metadata_of(parent)
    base_model = hub_id_of(parent) or known.get("base_model")  # a pruned folder's card names the dense model
    tags = ["hgsp", "pruned", *(["recovered"] if recovered else []), *(known.get("tags") or [])]
    return ModelCardData(
        base_model=base_model,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=list(dict.fromkeys(tags)),
        **{name: known[name] for name in _INHERITED if known.get(name)},
    )


def _metadata_of(parent: str) -> dict[str, Any]:
    """Return the metadata of a model's card, empty without a card or for one that cannot be read."""
    text = read_card(parent)
    if text is None:
        return {}
    try:
        return dict(ModelCard(text, ignore_metadata_errors=True).data.to_dict())
    except (ValueError, TypeError, yaml.YAMLError):
        return {}


def _title(parent: str, metadata: ModelCardData, pruning: Mapping[str, Any], recovery: Mapping[str, Any]) -> str:
    base = Path(pruning.get("base_model", parent)).name
    base_id = metadata.base_model if isinstance(metadata.base_model, str) else None
    link = f"[{base_id}](https://huggingface.co/{base_id})" if base_id else base
    if not pruning:
        return f"# {base}, recovered\n\n{link}, trained with hgsp."
    removed = f"{pruning['reached_ratio']:.1%} of its parameters removed"
    of_decoder = f"{pruning['reached_ratio_decoder']:.1%}"
    done = f", then recovered by {_training(recovery)}" if recovery else ""
    return (
        f"# {base}, {removed}\n\n{link}, structurally pruned with hgsp{done}. Whole KV groups (a KV head with its "
        f"query heads) and {_of_mlps(pruning)} are gone, {of_decoder} of the decoder layers: tensors are smaller, "
        "not masked."
    )


def _of_mlps(pruning: Mapping[str, Any]) -> str:
    """Return the kinds of groups that the MLPs of the dense model consist of."""
    present = {kind.name for kind in GROUP_KINDS for entry in pruning["layers"] if entry.get(kind.dense_key)}
    return " and ".join(kind.label for kind in kinds_among(present) if kind.block == "mlp")


def _training(recovery: Mapping[str, Any]) -> str:
    name = {"lora": "LoRA", "full": "training all parameters"}[recovery["method"]]
    return name + (" on the dense model's predictions" if recovery["distilled_from"] else "")


def _measured(pruning: Mapping[str, Any], recovery: Mapping[str, Any]) -> str:
    """Return the table of sizes and perplexities, with the protocol of each text below it."""
    stages = (["dense", "pruned"] if pruning else ["before"]) + (["recovered"] if recovery else [])
    rows = [*_sizes(pruning, bool(recovery)), *_perplexities(pruning, recovery, len(stages))]
    if not rows:
        return ""
    table = [["", *stages], ["---", *["---:"] * len(stages)], *rows]
    lines = [f"| {' | '.join(row)} |" for row in table]
    measured = recovery.get("evaluation") or pruning.get("evaluation") or {}
    notes = [
        f"{name}: {result['split']}, {result['windows']} x {result['seq_len']} tokens, {result['dtype']}, "
        f"sha256 {result['sha256'][:8]}"
        for name, result in measured.get(AFTER, {}).items()
    ]
    if notes:
        lines += ["", f"Token perplexity, comparable by the same protocol alone. {'; '.join(notes)}."]
    return "\n".join(["## Measured", "", *lines])


def _sizes(pruning: Mapping[str, Any], recovered: bool) -> Iterator[list[str]]:
    for label, key in (
        ("parameters", "params"),
        ("bytes of weights", "weight_bytes"),
        ("bytes of KV cache per token", "kv_cache_bytes_per_token"),
    ):
        if pruning:
            after = f"{pruning[f'{key}_after']:,}"
            yield [label, f"{pruning[f'{key}_before']:,}", after, *([after] if recovered else [])]


def _perplexities(pruning: Mapping[str, Any], recovery: Mapping[str, Any], columns: int) -> Iterator[list[str]]:
    """Yield a row per text; a stage measured by another protocol than the last has no number."""
    stages = [report.get("evaluation", {}).get(when, {}) for report, when in _stages(pruning, recovery)]
    for name, last in (stages[-1] if stages else {}).items():
        same = [stage.get(name, {}) for stage in stages]
        values = [f"{item['ppl']:.2f}" if _protocol(item) == _protocol(last) else "" for item in same]
        yield [f"perplexity, {name}", *values[-columns:]]


def _stages(pruning: Mapping[str, Any], recovery: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], str]]:
    if not recovery:
        return [(pruning, BEFORE), (pruning, AFTER)] if pruning else []
    return [*([(pruning, BEFORE)] if pruning else []), (recovery, BEFORE), (recovery, AFTER)]


def _protocol(result: Mapping[str, Any]) -> list[Any]:
    return [result.get(name) for name in ("sha256", "seq_len", "windows", "tokens", "bos", "dtype")]


def _usage(name: str, config: Mapping[str, Any]) -> str:
    own = is_pruned_type(config.get("model_type"))
    family = family_named(str(config.get("model_type")))
    oldest = "" if family is None else ".".join(map(str, family.first_version))
    registers = "import hgsp  # registers models whose layers differ in size\n" if own else ""
    note = (
        f"\n\nWithout hgsp, transformers ({oldest} or newer) runs `modeling_hgsp.py` of this folder if you pass "
        "`trust_remote_code=True`."
        if own
        else "\n\nAll layers have the same size: transformers loads it as it is."
    )
    return (
        "## Use\n\n```python\n"
        f"{registers}from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{name}", dtype="auto")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n```{note}'
    )


def _origin(pruning: Mapping[str, Any], recovery: Mapping[str, Any]) -> str:
    """Return the commands, without paths of a machine, and the settings that matter most."""
    reports = [report for report in (pruning, recovery) if report]
    commands = "\n".join(re.sub(r"^(?=\S+\.py\b)", "python ", report["command"]) for report in reports)
    facts = [f"Scores: `{pruning['importance_method']}`."] if pruning else []
    calibration = pruning.get("scoring", {}).get("calibration")
    if calibration:
        facts.append(
            f"Calibration: {calibration['sequences']} x {calibration['seq_len']} tokens of {calibration['source']}."
        )
    if pruning.get("reconstruction"):
        facts.append(f"Remaining weights refitted (`{pruning['reconstruction']['method']}`).")
    if pruning.get("removed_layers"):
        facts.append(f"Layers removed whole: {', '.join(map(str, pruning['removed_layers']))}.")
    if recovery:
        data = recovery["data"]
        facts.append(f"Trained for {recovery['steps']} steps on {data['source']}, {data['train_tokens']:,} tokens.")
    environment = reports[-1]["environment"]
    versions = ", ".join(f"{name} {environment[name]}" for name in ("hgsp", "torch", "transformers"))
    facts.append(f"Versions: {versions}; {environment['dtype']}, seed {environment['seed']}.")
    file = RECOVERY_REPORT if recovery else PRUNING_REPORT
    return f"## How it was made\n\n```sh\n{commands}\n```\n\n{' '.join(facts)} Everything else: `{file}`."


def _limits(pruning: Mapping[str, Any], recovery: Mapping[str, Any]) -> str:
    limits = ["The model keeps the biases and risks of its base model, whose terms of use apply."]
    if pruning:
        limits.append("Pruning costs knowledge and rare skills more than perplexity shows: measure your own task.")
    if pruning and not recovery:
        limits.append("No training followed the pruning.")
    if pruning.get("collapsed") and not recovery:
        limits.append("**Its perplexity has collapsed: it is a starting point for training, not a usable model.**")
    limits += dict.fromkeys([*pruning.get("warnings", []), *recovery.get("warnings", [])])
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits)
