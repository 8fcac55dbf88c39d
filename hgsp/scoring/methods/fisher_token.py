"""Fisher by token: squared gradient of a mask on the group at one token.

What it scores
    A mask on the output of a group, as ``fisher``, but one per token.
Formula and source
    ``mean_s sum_t c_st^2`` with ``c_st = sum_{i in group} x_ti * dL_s/dx_ti``, x the input of ``o_proj`` or
    ``down_proj``, L_s the mean token loss of sequence s. Unlike ``fisher`` (arXiv:2204.09656), it has no cross terms
    between tokens: these measure output that is the same at all tokens, which ``--reconstruct`` restores.
Shapes and sums
    Sums over the columns of a group are float32 [B, T, G], B sequences at a time; their squares are added in float32
    [G].
What it needs
    One forward and one backward pass; gradients of activations only, none of weights.
Cost
    That of ``fisher``.
When it misleads
    Without reconstruction it underrates groups with a constant output: on SmolLM2-135M it is behind ``fisher`` at 20
    and 30 %, and ahead of it at 10 and 50 %.
"""

from __future__ import annotations

from hgsp.scoring.methods.types import MaskMethod

FISHER_TOKEN = MaskMethod("fisher_token", "mask_grad_token_sq")
