"""The documented import path of :mod:`hgsp.evaluation`."""

import hgsp as hgsp
