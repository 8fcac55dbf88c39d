"""Fisher by token: squared gradient of a gate that would switch a group off at one token.

What it scores
    A gate on everything a group writes, as ``fisher``, but one for every token.
Formula and source
    ``mean_s sum_t c_st^2`` with ``c_st = sum_{i in group} x_ti * dL_s/dx_ti``, x the input of ``o_proj`` or
    ``down_proj``, L_s the mean token loss of sequence s. The cross terms between tokens that ``fisher`` has
    (arXiv:2204.09656) are left out: what they say, that a group writes the same everywhere, is what the refit of
    ``--reconstruct`` makes good for.
Shapes and sums
    Sums over a group's columns are float32 [B, T, G], B sequences at a time; they are squared and added up in float32
    [G].
What it needs
    One forward and one backward pass; gradients of activations only, none of weights.
Cost
    That of ``fisher``.
When it misleads
    Without reconstruction it takes a group that writes a constant for one that matters little: on SmolLM2-135M it is
    behind ``fisher`` there at 20 and 30 %, ahead at 10 and 50 %.
"""

from __future__ import annotations

from hgsp.scoring.methods.types import MaskMethod

FISHER_TOKEN = MaskMethod("fisher_token", "mask_grad_token_sq")
