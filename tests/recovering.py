"""Samples by hand, for tests of recovery."""

import numpy as np

from hgsp.recovery.samples import IGNORED, Sample


def sample(*tokens):
    """All tokens but the first are learned."""
    return Sample(np.array(tokens, np.int32), np.array([IGNORED, *tokens[1:]], np.int32))
