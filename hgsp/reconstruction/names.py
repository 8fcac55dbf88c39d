"""Names of the reconstruction methods, importable without torch."""

#: Values of ``--reconstruct``; all but "none" are methods of ``ReconstructionOptions``.
RECONSTRUCTIONS = ("none", "bias", "lstsq", "blocks")
