"""The documented import path of :mod:`hgsp.evaluation.metrics`."""
