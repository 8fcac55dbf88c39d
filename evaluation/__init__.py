"""Measures models, dense or pruned. Importing it lets transformers load pruned folders, as importing ``hgsp`` does."""

import hgsp as hgsp
