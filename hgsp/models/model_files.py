"""The tensors of a checkpoint folder by their names in the model, however its files name and divide them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hgsp.models.expert_files import ExpertFiles
from hgsp.models.families import experts_of
from hgsp.models.fused_files import FusedFiles
from hgsp.models.mxfp4 import is_mxfp4
from hgsp.models.mxfp4_files import Mxfp4Files
from hgsp.models.safetensor_files import SafetensorFiles


def files_of(folder: Path, skeleton: Any) -> SafetensorFiles:
    """Return the tensors of a checkpoint folder by their names in a model, which may be on the meta device."""
    names = experts_of(skeleton.config)
    if names is None:
        return FusedFiles(folder, skeleton)
    return Mxfp4Files(folder, names) if is_mxfp4(skeleton.config) else ExpertFiles(folder, names)
