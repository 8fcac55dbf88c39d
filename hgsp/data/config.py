"""Options of every command that reads named texts. Importing this file costs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hgsp.console.flags import option


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Options of every command that reads named texts."""

    GROUP: ClassVar[str] = "texts"

    data_dir: str | None = option(None, help="folder with local texts (docs/DATA.md); also HGSP_DATA_DIR")
