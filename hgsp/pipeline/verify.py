"""The checks of a model's folder: files, config, tensors, plan, ``.bin``, and the dense model where it is at hand."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from safetensors import SafetensorError

from hgsp.console.checksums import CHECKSUMS, read_checksums
from hgsp.console.report_schema import PRUNING_REPORT
from hgsp.environment import file_sha256
from hgsp.errors import InputError, one_line
from hgsp.models.families import KINDS, LAYER_PREFIX, family_of
from hgsp.models.hub_upload import LOCAL_FILES
from hgsp.models.loading import inspect_model
from hgsp.models.pruned_bin import BIN_NAME, read_bin
from hgsp.models.weight_checks import refuse_unplaced_weights
from hgsp.pipeline.dense_comparison import DenseComparison
from hgsp.pipeline.verified_folder import CONFIG, PLAN, DifferenceError, NotAppliedError, VerifiedFolder
from hgsp.pruning.surgery import surviving_layers

PASSED, DIFFERS, NOT_APPLIED = "passed", "differs", "not applied"
GROUP_TABLE = "global_group_table.csv"

#: Errors that parsers of this package and of torch, transformers and safetensors raise for damaged files. Files are
#: untrusted here, and each check reads several.
DAMAGE = (ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError, SafetensorError)


@dataclass(frozen=True)
class Check:
    """The outcome of one check: ``passed``, ``differs`` or ``not applied``, with one line about it."""

    name: str
    status: str
    detail: str


def verify_folder(path: str | Path, base_model: str | None = None) -> list[Check]:
    """Run all checks that apply to a folder; the weights are read three times at most, one tensor at a time.

    Args:
        base_model: the dense model; None is the one that the report names, if it is on this machine.

    Raises:
        InputError: no folder, one without a model, or another dense model than the folder was pruned from.
    """
    if not Path(path).is_dir():
        raise InputError(expected="the folder of a model", got=f"'{path}'", remedy="check the path")
    folder = VerifiedFolder(Path(path))
    dense = DenseComparison(folder, None if base_model is None else inspect_model(base_model))
    checks: dict[str, Callable[[], str]] = {
        "checksums": lambda: check_files(folder),
        "tensors": lambda: check_tensors(folder),
        "plan": lambda: check_plan(folder),
        BIN_NAME: lambda: check_bin(folder),
        "dense model": dense.weights,
        "logits": dense.logits,
    }
    done = [_outcome(name, check) for name, check in checks.items()]
    if all(check.status == NOT_APPLIED for check in done):
        raise InputError(
            expected=f"a model in {path}", got="none that can be checked", remedy="pass the folder of a result"
        )
    return done


def _outcome(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, PASSED, check())
    except NotAppliedError as reason:
        return Check(name, NOT_APPLIED, str(reason))
    except DifferenceError as difference:
        return Check(name, DIFFERS, str(difference))
    except InputError as error:
        if name == "dense model":
            raise
        return Check(name, DIFFERS, str(error))
    except DAMAGE as error:
        return Check(name, DIFFERS, f"a damaged file: {type(error).__name__}: {one_line(error)}")


def check_files(folder: VerifiedFolder) -> str:
    """Compute the checksums of all files again. Files that stay behind in an upload may be missing.

    Raises:
        DifferenceError: a file is missing or has another content.
        NotAppliedError: the folder has no checksums.
    """
    checksums = read_checksums(folder.path)
    if checksums is None:
        raise NotAppliedError(f"no {CHECKSUMS}; it was written by an earlier version, or not by hgsp")
    absent = [name for name in checksums if not (folder.path / name).is_file()]
    for name in absent:
        if not any(fnmatch(name, pattern) for pattern in LOCAL_FILES):
            raise DifferenceError(f"{name} of {CHECKSUMS} is missing")
    for name, expected in checksums.items():
        if name not in absent and (found := file_sha256(folder.path / name)) != expected:
            raise DifferenceError(f"{name} has SHA-256 {found[:16]}, and {expected[:16]} in {CHECKSUMS}")
    return f"{len(checksums) - len(absent)} files" + (f"; not here: {', '.join(absent)}" if absent else "")


def check_tensors(folder: VerifiedFolder) -> str:
    """Compare names, shapes and dtypes of the stored tensors with ``config.json``, and their values with finite ones.

    Raises:
        DifferenceError: with the first tensor that differs.
        InputError: weights that cannot be read or have no place in the model.
        NotAppliedError: no weights in safetensors that our classes read.
    """
    config, expected = folder.skeleton.config, folder.shapes
    if any(folder.path.glob("pytorch_model*.bin")) and not any(folder.path.glob("*.safetensors")):
        raise NotAppliedError("weights that are no safetensors")
    found = folder.files.shapes
    for name, shape in expected.items():
        if name not in found:
            raise DifferenceError(f"{name} is in no file of weights, though {CONFIG} describes it")
        if found[name] != shape:
            place = folder.files.file_of(name).name
            raise DifferenceError(f"{place}: {name} has shape {list(found[name])}, and {list(shape)} in {CONFIG}")
    refuse_unplaced_weights(folder.path, found.keys() - expected.keys(), config)
    for name in expected:
        tensor, place = folder.files.read(name), folder.files.file_of(name).name
        if folder.report and tensor.dtype != config.dtype:
            raise DifferenceError(f"{place}: {name} is {tensor.dtype}, and {config.dtype} in {CONFIG}")
        if not tensor.isfinite().all():
            index = (~tensor.isfinite()).nonzero()[0].tolist()
            raise DifferenceError(f"{place}: {name}{index} is {tensor[tuple(index)].item()}")
    parameters = sum(parameter.numel() for parameter in folder.skeleton.parameters())
    return f"{len(expected)} tensors with {parameters:,} parameters, as in {CONFIG}, all finite"


def check_plan(folder: VerifiedFolder) -> str:
    """Compare the plan with the report, the group table, the sizes of all layers and the number of parameters.

    Raises:
        DifferenceError: with the first layer or number that differs.
        NotAppliedError: the folder has no plan.
    """
    plan, report = folder.plan, folder.report
    for layer, (kept, reported) in enumerate(zip(plan.layers, folder.reported_layers(), strict=True) if report else ()):
        if kept != reported:
            raise DifferenceError(f"{PLAN} keeps other groups in layer {layer} than {PRUNING_REPORT}")
    _check_sizes(folder)
    if report:
        _check_parameters(folder)
    _check_group_table(folder)
    return f"{len(plan.layers)} layers, {plan.removed_params:,} parameters removed"


def _check_sizes(folder: VerifiedFolder) -> None:
    """Compare the rows of key and gate projections with the groups that the plan keeps."""
    family, head_dim = family_of(folder.skeleton.config), folder.skeleton.config.head_dim
    kept_layers = surviving_layers(folder.plan)
    if len(kept_layers) != len(folder.skeleton.model.layers):
        found = len(folder.skeleton.model.layers)
        raise DifferenceError(f"{CONFIG} has {found} layers, and the plan keeps {len(kept_layers)}")
    for new, old in enumerate(kept_layers):
        shape = folder.plan.layers[old].shape
        for kind, groups, rows in ((KINDS[0], shape.num_kv_groups, head_dim), (KINDS[1], shape.mlp_width, 1)):
            name = f"{LAYER_PREFIX}{new}.{family.blocks[kind].input_projections[-1]}.weight"
            stored = folder.shapes[name][0] if name in folder.shapes else 0
            if stored != groups * rows:
                raise DifferenceError(
                    f"{name} has {stored} rows, and {groups * rows} in the plan of layer {old} before pruning"
                )


def _check_parameters(folder: VerifiedFolder) -> None:
    """Compare the parameters counted on the model with the report, and what the plan removes with their difference."""
    counted = sum(parameter.numel() for parameter in folder.skeleton.parameters())
    report, plan = folder.report, folder.plan
    if counted != report["params_after"]:
        raise DifferenceError(f"{CONFIG} has {counted:,} parameters, and {PRUNING_REPORT} {report['params_after']:,}")
    removed = report["params_before"] - counted
    if removed != plan.removed_params and not plan.writer_bias:  # biases that a plan adds are not counted in it
        raise DifferenceError(f"{removed:,} parameters are gone, and {plan.removed_params:,} in {PLAN}")


def _check_group_table(folder: VerifiedFolder) -> None:
    path = folder.path / GROUP_TABLE
    if not path.is_file():
        return
    layers = folder.plan.layers
    kept = [(set(keep.kv_groups), set(keep.mlp_channels)) for keep in layers]
    with path.open(encoding="utf-8", newline="") as source:
        for row in csv.DictReader(source):
            layer, kind, group = int(row["layer"]), row["kind"], int(row["group"])
            if (row["kept"] == "1") != (group in kept[layer][KINDS.index(kind)]):
                raise DifferenceError(f"{GROUP_TABLE} and {PLAN} differ in layer {layer}, {kind} group {group}")


def check_bin(folder: VerifiedFolder) -> str:
    """Compare ``pruned_model.bin`` with the files of the folder: tensors, configs and tokenizer.

    Raises:
        DifferenceError: with the first of them that differs.
        NotAppliedError: the folder has no such file.
    """
    path = folder.path / BIN_NAME
    if not path.is_file():
        raise NotAppliedError("no such file")
    content = read_bin(path)
    if different := sorted(content["state_dict"].keys() ^ folder.shapes.keys()):
        raise DifferenceError(f"{different[0]} is in one of {BIN_NAME} and {CONFIG} alone")
    for name, tensor in content["state_dict"].items():
        folder.compare(name, tensor, BIN_NAME)
    texts = {CONFIG: content["config"], "generation_config.json": content["generation_config"]}
    for name, text in texts.items():
        if text is not None and json.loads(text) != json.loads((folder.path / name).read_text(encoding="utf-8")):
            raise DifferenceError(f"{name} differs from the one in {BIN_NAME}")
    for name, tensor in content["tokenizer_files"].items():
        if (folder.path / name).read_bytes() != tensor.numpy().tobytes():
            raise DifferenceError(f"{name} differs from the one in {BIN_NAME}")
    return f"{len(content['state_dict'])} tensors, configs and tokenizer equal those of the folder"
