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
from hgsp.models.blocks import KINDS
from hgsp.models.experts import DOWN, ROUTERS
from hgsp.models.families import LAYER_PREFIX, family_of
from hgsp.models.hub_upload import LOCAL_FILES
from hgsp.models.linear_attention import LINEAR_ATTENTION
from hgsp.models.loading import inspect_model
from hgsp.models.places import is_folder
from hgsp.models.pruned_bin import BIN_NAME, read_bin
from hgsp.models.weight_files import pickled_weight_files
from hgsp.pipeline.dense_comparison import DenseComparison, DenseModelError
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
    if not is_folder(path):
        raise InputError(expected="the folder of a model", got=f"'{path}'", remedy="check the path")
    folder = VerifiedFolder(Path(path))
    dense = DenseComparison(folder, None if base_model is None else inspect_model(base_model, dequantize=True))
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
    except DenseModelError:
        raise
    except InputError as error:
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
        DifferenceError: a tensor of another dtype.
        InputError: a tensor that is missing, has another shape or no place in the model, or is not finite.
        NotAppliedError: no weights in safetensors that our classes read.
    """
    if pickled_weight_files(folder.path):
        raise NotAppliedError("weights that are no safetensors")
    dtype = folder.model.config.dtype
    for name in folder.names:
        tensor = folder.files.read(name)
        if folder.report and tensor.dtype != dtype:
            place = folder.files.file_of(name).name
            raise DifferenceError(f"{place}: {name} is {tensor.dtype}, and {dtype} in {CONFIG}")
    return f"{len(folder.names)} tensors with {folder.num_params:,} parameters, as in {CONFIG}, all finite"


def check_plan(folder: VerifiedFolder) -> str:
    """Compare the plan with the report, the group table, the sizes of all layers and the number of parameters.

    Raises:
        DifferenceError: with the first layer or number that differs.
        NotAppliedError: the folder has no plan.
    """
    plan, report = folder.plan, folder.report
    for layer, (kept, reported) in enumerate(zip(plan.layers, folder.reported_layers(), strict=True) if report else ()):
        if kept.groups != reported.groups:
            raise DifferenceError(f"{PLAN} keeps other groups in layer {layer} than {PRUNING_REPORT}")
    _check_sizes(folder)
    if report:
        _check_parameters(folder)
    _check_group_table(folder)
    return f"{len(plan.layers)} layers, {plan.removed_params:,} parameters removed"


def _check_sizes(folder: VerifiedFolder) -> None:
    """Compare the rows of value and up projections and of routers with the groups that the plan keeps."""
    family, head_dim = family_of(folder.model.config), folder.model.config.head_dim
    kept_layers, found = surviving_layers(folder.plan), folder.model.config.num_hidden_layers
    if len(kept_layers) != found:
        raise DifferenceError(f"{CONFIG} has {found} layers, and the plan keeps {len(kept_layers)}")
    for new, old in enumerate(kept_layers):
        shape = folder.plan.layers[old].shape
        attention, mlp = (family.blocks[kind].input_projections[-1] for kind in KINDS)
        sizes = (
            (attention, shape.num_kv_groups, head_dim),
            (mlp, shape.mlp_width, 1),
            (_router_in(folder, new), shape.num_experts, 1),
            (LINEAR_ATTENTION.output_projection, shape.linear_attention, folder.model.config.hidden_size),
        )
        for linear, groups, rows in sizes:
            name = f"{LAYER_PREFIX}{new}.{linear}.weight"
            stored = folder.files.shapes[name][0] if name in folder.names else 0
            if stored != groups * rows:
                raise DifferenceError(
                    f"{name} has {stored} rows, and {groups * rows} in the plan of layer {old} before pruning"
                )
        name = f"{LAYER_PREFIX}{new}.{DOWN}"
        dim = 1 if family.experts is not None and family.experts.stacked else 2
        if shape.expert_width and (width := folder.files.shapes[name][dim]) != shape.expert_width:
            raise DifferenceError(
                f"{name} has {width} channels, and {shape.expert_width} in the plan of layer {old} before pruning"
            )


def _router_in(folder: VerifiedFolder, layer: int) -> str:
    return next((name for name in ROUTERS if f"{LAYER_PREFIX}{layer}.{name}.weight" in folder.names), ROUTERS[0])


def _check_parameters(folder: VerifiedFolder) -> None:
    """Compare the parameters counted on the model with the report, and what the plan removes with their difference."""
    counted = folder.num_params
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
    kept = [{kind: set(groups) for kind, groups in keep.groups.items()} for keep in layers]
    with path.open(encoding="utf-8", newline="") as source:
        for row in csv.DictReader(source):
            layer, kind, group = int(row["layer"]), row["kind"], int(row["group"])
            if (row["kept"] == "1") != (group in kept[layer][kind]):
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
    if different := sorted(content["state_dict"].keys() ^ set(folder.names)):
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
