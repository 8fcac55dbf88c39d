"""Export of finished checkpoints to the formats of other engines: one file per target, all listed in ``targets``."""
