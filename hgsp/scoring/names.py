"""Names that scoring can be configured with, importable without torch."""

#: Keys of ``hgsp.scoring.methods.METHODS``: gradients first, controls last.
IMPORTANCE_METHODS = ("taylor", "taylor_2nd", "fisher", "fisher_token", "wanda", "flap", "reap", "magnitude", "random")
#: Methods that read no calibration text.
TEXT_FREE_METHODS = ("magnitude", "random")
#: "auto", the normalization of the method itself, and the keys of ``hgsp.scoring.normalization.NORMALIZERS``.
NORMALIZATIONS = ("auto", "none", "mean", "share", "rank", "output")
#: Next tokens that gradients are taken for: those of the text, or drawn from the model's own distributions.
LABELS = ("text", "model")
#: Measures of the influence of layers and blocks.
LAYER_IMPORTANCES = ("cosine", "perplexity")
