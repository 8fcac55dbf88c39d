"""Upload of finished results to the Hugging Face hub, refused before the run where it cannot succeed.

The token is that of huggingface_hub: ``HF_TOKEN``, or the one that ``hf auth login`` stored.
"""

from __future__ import annotations

import logging
import shlex
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.constants import is_offline_mode
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hgsp.console.hub_access import ask_hub
from hgsp.errors import InputError, one_line
from hgsp.models.model_cards import CARD, HUB_FAILURES, download_card, is_own_card
from hgsp.models.pruned_bin import BIN_NAME

LOG = logging.getLogger("hgsp")

#: Files of a result that stay: scores and their table, to prune again from; logs and settings, which have paths as they
#: were given; a second copy of the weights.
LOCAL_FILES = (BIN_NAME, "scores.npz", "global_group_table.csv", "logs/*", "runs/*", "*.log", "*run.yaml")
#: Weights of an earlier upload, which the new model must not be mixed with.
REPLACED_FILES = ("*.safetensors", "*.safetensors.index.json")


def check_upload(repo_id: str) -> str:
    """Return the full id of the repository that ``--push_to_hub`` names; asks the hub for the owner of the token.

    Raises:
        InputError: an invalid id, offline mode, no token or one that may not write, no connection, or somebody else's
            namespace.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(
            expected="--push_to_hub to be a repository id", got=f"'{repo_id}'", remedy="pass USER/NAME"
        ) from error
    if is_offline_mode():
        raise InputError(
            expected="a connection for --push_to_hub",
            got="offline mode (HF_HUB_OFFLINE)",
            remedy="unset it, or leave --push_to_hub out and upload the folder later with `hf upload`",
        )
    if get_token() is None:
        raise InputError(expected="a token for --push_to_hub", got="none", remedy="run `hf auth login` or set HF_TOKEN")
    owner = _owner_of_token()
    if owner.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise InputError(
            expected="a token that may write, for --push_to_hub",
            got="one that may only read",
            remedy="create another at https://huggingface.co/settings/tokens",
        )
    namespace, _, name = repo_id.rpartition("/")
    namespaces = [owner["name"], *(group["name"] for group in owner.get("orgs", ()))]
    if namespace and namespace not in namespaces:
        raise InputError(
            expected=f"--push_to_hub into a namespace of the token ({', '.join(namespaces)})",
            got=f"'{namespace}'",
            remedy="pass USER/NAME with one of them",
        )
    return f"{namespace or owner['name']}/{name}"


def _owner_of_token() -> dict[str, Any]:
    ask_hub()
    try:
        return dict(HfApi().whoami())
    except HUB_FAILURES as error:
        raise InputError(
            expected="a connection and a valid token for --push_to_hub",
            got=one_line(error),
            remedy="see `hf auth whoami`, or leave --push_to_hub out and upload the folder later with `hf upload`",
        ) from error


def upload(folder: Path, repo_id: str) -> int:
    """Upload a result in one commit and return the exit code: 1 if that failed, which leaves the folder as it is.

    A new repository is private. An existing one keeps its visibility, a model card that somebody wrote or edited, and
    all other files except weights.

    Args:
        repo_id: from ``check_upload``.
    """
    api, stay = HfApi(), list(LOCAL_FILES)
    try:
        url = api.create_repo(repo_id, private=True, exist_ok=True)
        if api.file_exists(repo_id, CARD) and not is_own_card(download_card(repo_id)):
            LOG.info("%s keeps its own %s", repo_id, CARD)
            stay.append(CARD)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=f"Upload {folder.name}",
            ignore_patterns=stay,
            delete_patterns=list(REPLACED_FILES),
        )
    except HUB_FAILURES as error:
        again = shlex.join(["hf", "upload", repo_id, str(folder), ".", "--private", "--exclude", *LOCAL_FILES])
        LOG.error("error: the upload failed (%s); %s is complete. To upload it: %s", one_line(error), folder, again)
        return 1
    LOG.info("uploaded: %s (private if it is new)", url)
    return 0
