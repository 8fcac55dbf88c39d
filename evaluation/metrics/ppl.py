"""The documented import path of :mod:`hgsp.evaluation.metrics.ppl`."""

from hgsp.evaluation.metrics.ppl import Perplexity, PPLMetric, perplexity

__all__ = ["PPLMetric", "Perplexity", "perplexity"]
