"""Models of a hub: ids with a revision, and the flags of every command that reads one. Importing this costs no torch.

A model is named ``owner/name`` or ``owner/name@revision``, the revision being a branch, tag or commit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hgsp.console.flags import option, require
from hgsp.console.hub_access import ask_hub
from hgsp.models.places import HUB_ID, exists


@dataclass(frozen=True, kw_only=True)
class HubConfig:
    """Options of every command that reads models by hub id."""

    GROUP: ClassVar[str] = "models"

    revision: str | None = option(
        None,
        help="branch, tag or commit of the models named by hub id, unless they are named ID@REVISION (unset: the "
        "default branch)",
    )
    token: str | None = option(
        None,
        help="token for gated and private hub models; it is recorded nowhere. Other users of the machine see flags: "
        "prefer the environment variable HF_TOKEN",
        environment="HF_TOKEN",
    )

    def pin(self, *names: str) -> None:
        """Append ``--revision`` to the hub ids among the named fields.

        Raises:
            InputError: there is none to append it to.
        """
        if self.revision is None:
            return
        values = {name: getattr(self, name) for name in names}
        pinned = {name: f"{value}@{self.revision}" for name, value in values.items() if value and _can_be_pinned(value)}
        require(bool(pinned), "--revision", "given with a model named by hub id", self.revision, "leave it out")
        for name, value in (pinned | {"revision": None}).items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True, kw_only=True)
class UploadConfig:
    """Options of every command that writes a model."""

    push_to_hub: str | None = option(
        None,
        help="upload the result to this repository of the hub, private if new; with several ratios or --finetune, each "
        "result to its own, named like the folders",
        group="output",
    )


def with_revision(name: str | Path) -> tuple[str, dict[str, Any]]:
    """Split a model's name into what ``from_pretrained`` takes: the id or path, and keyword arguments.

    Of a hub id it makes sure that the hub answers.
    """
    text = str(name)
    if exists(text) or not HUB_ID.fullmatch(text):
        return text, {}
    ask_hub()
    if "@" not in text:
        return text, {}
    plain, _, revision = text.partition("@")
    return plain, {"revision": revision}


def _can_be_pinned(name: str) -> bool:
    return bool(HUB_ID.fullmatch(name)) and not ("@" in name or name.endswith(".gguf") or exists(name))
