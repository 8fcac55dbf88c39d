"""Access to the hub within a limit of time. Importing this file costs no torch."""

from __future__ import annotations

import logging
import os
import sys
from functools import cache

from hgsp.errors import one_line

LOG = logging.getLogger("hgsp")

#: Seconds in which a hub must give its first sign of life, and in which it must answer any later request.
FIRST_ANSWER, LATER_ANSWERS = 10.0, 60.0


@cache
def ask_hub() -> None:
    """Ask the hub for a sign of life before it is used for the first time; without one, stay offline from here on.

    The libraries of the hub have no limit for most requests and repeat the others: a hub that accepts connections and
    never answers would stop a command for hours. Offline they use their caches, and name what is missing there.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return
    session = get_session()
    session.timeout = LATER_ANSWERS
    try:
        session.head(constants.ENDPOINT, timeout=FIRST_ANSWER)
    except (*HfHubHTTPError.__bases__, OSError) as error:  # errors of the HTTP library, whose name depends on the hub's
        LOG.warning(
            "the hub (%s) does not answer: %s; only files that are on this machine are used",
            constants.ENDPOINT,
            one_line(error),
        )
        _go_offline()


def _go_offline() -> None:
    """Set the switches that the libraries of the hub read when they are imported, and those read later."""
    from huggingface_hub import constants

    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True
