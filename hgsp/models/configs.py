"""The gate for ``config.json``: every command reads it here, and a config that cannot become a model is one refusal.

A config is read from a folder, a hub id, the header of a .gguf file or a ``pruned_model.bin``. No code from a folder or
the hub is ever executed.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, cached_file

from hgsp.errors import InputError, one_line
from hgsp.models.config_rules import TOKEN_IDS, check_rules, check_settings, shown
from hgsp.models.families import FAMILIES, family_named
from hgsp.models.family_classes import check_installed
from hgsp.models.fusion import unfused
from hgsp.models.gguf_files import gguf_config
from hgsp.models.hub import with_revision
from hgsp.models.infinite_settings import with_infinities
from hgsp.models.places import is_bin, is_folder, is_gguf, is_lfs_pointer, refuse_no_model
from hgsp.models.pruned_bin import read_bin
from hgsp.models.refusals import is_about_the_file, refusing
from hgsp.models.weight_checks import refuse_adapter, unreachable

#: Settings of how transformers runs a model, or of code and files that it fetches; the model itself has none of them.
#: An attention implementation may be a kernel on the hub, ``transformers_weights`` any file of the folder.
IGNORED_SETTINGS = frozenset(
    {
        *("auto_map", "attn_implementation", "_attn_implementation", "_attn_implementation_internal"),
        *("experts_implementation", "_experts_implementation", "_experts_implementation_internal"),
        *("attn_implementation_internal", "_flash_attn_2_enabled", "transformers_weights", "extra_files"),
        *("output_attentions", "output_hidden_states", "return_dict", "use_return_dict", "torchscript"),
        *("fusion_config", "distributed_config", "name_or_path", "_name_or_path", "_commit_hash", "_output_attentions"),
    }
)
#: A file that a repository of the hub need not have, or that need not be in the cache.
_OPTIONAL = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
MAX_BYTES = 64 * 2**20
MODEL_TYPES = {name for family in FAMILIES.values() for name in (family.model_type, family.pruned_model_type)}


@dataclass(frozen=True)
class ModelDescription:
    """A model without weights: the content of its ``config.json``, the config object, and the model on meta.

    The model, with a config of its own, is one that we can prune: unfused where the described class fuses projections.
    """

    raw: Mapping[str, Any]
    config: Any
    skeleton: Any


def describe(name: str | Path, check: Callable[[Mapping[str, Any]], None] | None = None) -> ModelDescription:
    """Read the config of a model and build the model on the meta device, in bfloat16.

    Args:
        name: hub id (also ``id@revision``), folder, .gguf file or ``pruned_model.bin``.
        check: refuses models that the caller does not support, by their settings; it is called with the content of
            ``config.json``, and with the settings of the config object, which include defaults of its class.

    Raises:
        InputError: no model, an adapter, or a config or generation config that cannot be used, with key and value.
    """
    refuse_no_model(name)
    refuse_adapter(name)
    raw, place = _raw_config(name)
    if str(raw.get("model_type")) in MODEL_TYPES:
        check_settings(raw, place)

    def build(settings: Mapping[str, Any]) -> tuple[Any, Any]:
        config = _config_object(settings, with_revision(name)[0])
        if check is not None:
            check(config.to_dict())
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(
                copy.deepcopy(config), dtype=torch.bfloat16, trust_remote_code=False
            )
        skeleton.tie_weights()
        skeleton = unfused(skeleton)
        _check_rotary(skeleton)
        return config, skeleton

    with refusing(lambda error: _cannot_become_a_model(raw, place, build, error)):
        if check is not None:
            check(raw)  # first: an unsupported model may be one that transformers cannot build
        config, skeleton = build(raw)
    read_generation_config(name)
    return ModelDescription(raw, config, skeleton)


def read_generation_config(name: str | Path) -> Any | None:
    """Read the generation config of a model, None if it has none.

    Raises:
        InputError: it cannot be read, with key and value.
    """
    if is_gguf(name):
        return None
    if is_bin(name):
        stored = read_bin(Path(name)).get("generation_config")
        raw = None if stored is None else parsed_object(stored, f"the generation config in {name}")
    else:
        file = _file_of(name, GENERATION_CONFIG_NAME, **_OPTIONAL)
        raw = None if file is None else read_object(file)
    if raw is None:
        return None
    place = f"{GENERATION_CONFIG_NAME} of '{name}'"
    check_rules(raw, TOKEN_IDS, place)
    _refuse_shadowing(GenerationConfig, raw, place)
    build = GenerationConfig.from_dict
    with refusing(lambda error: _cannot_become_a_model(raw, place, build, error)):
        return build(dict(raw))


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        InputError: the file is too large, no text in UTF-8, or anything but a JSON object.
    """
    if is_lfs_pointer(file):
        raise InputError(
            expected=f"JSON in {file}", got="a git-lfs pointer to it", remedy="run `git lfs pull` in its folder"
        )
    if file.stat().st_size > MAX_BYTES:
        raise InputError(expected=f"JSON in {file}", got="more than 64 MiB", remedy="check the file")
    return parsed_object(file.read_bytes(), str(file))


def parsed_object(content: Any, place: str) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        InputError: anything else.
    """
    with refusing(lambda error: _no_object(place, one_line(error))):
        found = json.loads(content)
    if not isinstance(found, dict):
        raise _no_object(place, f"JSON of another kind: {shown(found)}")
    return found


def _no_object(place: str, got: str) -> InputError:
    return InputError(expected=f"a JSON object in {place}", got=got, remedy="copy or download the file again")


def _raw_config(name: str | Path) -> tuple[dict[str, Any], str]:
    """Return the settings and the name of their place; settings that only steer libraries are left out."""
    if is_gguf(name):
        return gguf_config(Path(name)).to_dict(), f"the header of {name}"
    if is_bin(name):
        place = f"the config in {name}"
        raw = parsed_object(read_bin(Path(name)).get("config"), place)
    else:
        file = _file_of(name, CONFIG_NAME)
        if file is None:
            raise InputError(
                expected=f"a model in '{name}' with {CONFIG_NAME}",
                got=f"no {CONFIG_NAME}",
                remedy="pass the folder that holds config.json and the weights",
            )
        raw, place = read_object(file), str(file)
    return _without_ignored(raw), place


def _without_ignored(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings, and those nested in them, without the ignored ones."""
    return {
        key: _without_ignored(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if key not in IGNORED_SETTINGS
    }


def _file_of(name: str | Path, file: str, **if_missing: bool) -> Path | None:
    """Return the path of a file of a folder or hub id, None if it has no such file."""
    if is_folder(name):
        path = Path(name, file)
        return path if path.is_file() else None
    plain, revision = with_revision(name)
    with refusing(lambda error: unreachable(name, error)):
        found = cached_file(plain, file, **revision, **if_missing)
    return None if found is None else Path(found)


def _config_object(settings: Mapping[str, Any], name: str) -> Any:
    """Build the config object as ``AutoConfig`` does, of classes that are installed alone."""
    model_type = settings.get("model_type")
    if (family := family_named(str(model_type))) is not None:
        check_installed(family)
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise InputError(
            expected="a model_type that transformers knows",
            got=f"{shown(model_type)} in '{name}'",
            remedy="no code from a model's folder is executed; use a model that transformers supports",
        )
    config_class = CONFIG_MAPPING[model_type]
    _refuse_shadowing(config_class, settings, f"{CONFIG_NAME} of '{name}'")
    return config_class.from_dict(with_infinities(dict(settings)), name_or_path=name)


def _refuse_shadowing(settings_class: type, raw: Mapping[str, Any], place: str) -> None:
    """Refuse settings that would replace a method of the object that holds them."""
    for key, value in raw.items():
        if key.startswith("__") or callable(getattr(settings_class, key, None)):
            raise InputError(
                expected=f"settings alone in {place}", got=f"{key} = {shown(value)}", remedy="remove that key"
            )


def _check_rotary(skeleton: Any) -> None:
    """Check that rotary frequencies, computed from a few settings, are finite."""
    if skeleton.config.model_type in MODEL_TYPES and skeleton.model.rotary_emb is not None:
        for name, buffer in type(skeleton.model.rotary_emb)(config=skeleton.config).named_buffers():
            if not torch.isfinite(buffer).all():
                raise ValueError(f"rotary frequencies ({name}) that are not finite")


def _cannot_become_a_model(
    raw: Mapping[str, Any], place: str, build: Callable[[Mapping[str, Any]], Any], error: BaseException
) -> InputError:
    """Return the refusal of settings; the wrong one is the first without which the model can be built."""
    said = one_line(error) if type(error) in (ValueError, OSError) else f"{type(error).__name__}: {one_line(error)}"
    suspects = sorted(raw, key=lambda key: not _is_named(key, raw[key], said))
    key = next((key for key in suspects if _builds(build, {k: v for k, v in raw.items() if k != key})), None)
    return InputError(
        expected=f"settings that a model can be built of in {place}",
        got=said if key is None else f"{key} = {shown(raw[key])} ({said})",
        remedy="correct it, or copy the file again from where the model is from",
    )


def _is_named(key: str, value: Any, said: str) -> bool:
    """Return whether a library's error names a setting or a text in its value: it is then tried first."""
    return key in said or any(text in said for text in re.findall(r'"([^"]+)"', shown(value)))


def _builds(build: Callable[[Mapping[str, Any]], Any], settings: Mapping[str, Any]) -> bool:
    try:
        build(settings)
    except BaseException as error:
        if isinstance(error, InputError) or is_about_the_file(error):
            return False
        raise
    return True
