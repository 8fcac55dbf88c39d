"""Fisher: squared gradient of a mask on the whole group.

What it scores
    A mask on the output of a group: one factor on all its input columns of ``o_proj`` or ``down_proj``.
Formula and source
    ``mean_s c_s^2`` with ``c_s = sum_t sum_{i in group} x_ti * dL_s/dx_ti``, x the input of ``o_proj`` or
    ``down_proj``, L_s the mean token loss of sequence s (arXiv:2204.09656, with a mask on a whole KV group or channel).
Shapes and sums
    Sums over the columns of a group and the tokens of a sequence are float32 [B, G], B sequences at a time; their
    squares are added in float32 [G].
What it needs
    One forward and one backward pass; gradients of activations only, none of weights.
Cost
    Less than ``taylor``, and less than a plain forward and backward pass.
When it misleads
    It is a second-order approximation around the dense model, which may not hold when half of the decoder is removed at
    once (on SmolLM2-135M ``taylor`` is better there, on Qwen2.5-Coder-0.5B it is not).
"""

from hgsp.scoring.methods.types import MaskMethod

FISHER = MaskMethod("fisher", "mask_grad_sq")
