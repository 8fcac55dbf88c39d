"""Model cards on disk and on the hub: read, and told apart by who wrote them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from hgsp.console.hub_access import ask_hub
from hgsp.models.places import HUB_ID

CARD = "README.md"
#: The last line of a model card by hgsp, up to its hash.
_MARK = "\n<!-- written by hgsp "
#: Errors of the hub and of its HTTP library, whose name depends on the hub's version.
HUB_FAILURES: tuple[type[Exception], ...] = (*HfHubHTTPError.__bases__, OSError)


def hub_id_of(name: str) -> str | None:
    """Return the hub id of a model named by its id or by its folder in the hub's cache, None for other names."""
    if Path(name).exists():
        cached = (part for part in Path(name).absolute().parts if part.startswith("models--"))
        return next((part.removeprefix("models--").replace("--", "/") for part in cached), None)
    plain = name.partition("@")[0]  # without a revision
    return plain if "/" in plain and HUB_ID.fullmatch(plain) else None


def read_card(name: str) -> str | None:
    """Return the model card of a model: from its folder, else from the hub or its cache; None if there is none."""
    place = Path(name)
    if place.exists():
        local = (place if place.is_dir() else place.parent) / CARD
        return read_text(local) if local.is_file() else None
    repo_id = hub_id_of(name)
    try:
        return None if repo_id is None else download_card(repo_id)
    except HUB_FAILURES:
        return None


def download_card(repo_id: str) -> str:
    """Return the model card of a repository; raises an error of ``HUB_FAILURES`` without one."""
    ask_hub()
    return read_text(Path(hf_hub_download(repo_id, CARD)))


def read_text(path: Path) -> str:
    """Read a text that others wrote: bytes that are not UTF-8 are replaced."""
    return path.read_text(encoding="utf-8", errors="replace")


def signed(body: str) -> str:
    """Return a model card with a hash of its text as last line, by which ``is_own_card`` sees later edits."""
    return f"{body}{_MARK}{hashlib.sha256(body.encode()).hexdigest()[:16]} -->\n"


def is_own_card(text: str) -> bool:
    """Return whether hgsp wrote a model card and nobody has edited it."""
    body, found, _ = text.rpartition(_MARK)
    return bool(found) and signed(body) == text
