"""The tensors of a checkpoint folder by their names in the model, however its files name and divide them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hgsp.models.expert_files import ExpertFiles
from hgsp.models.families import experts_of
from hgsp.models.fused_files import FusedFiles
from hgsp.models.safetensor_files import SafetensorFiles


def files_of(folder: Path, skeleton: Any) -> SafetensorFiles:
    """Return the tensors of a checkpoint folder by their names in a model, which may be on the meta device."""
    names = experts_of(skeleton.config)
    return FusedFiles(folder, skeleton) if names is None else ExpertFiles(folder, names)
