"""Fisher: squared gradient of the gate that would switch a whole group off.

What it scores
    A gate on everything a group writes: the columns of ``o_proj`` or ``down_proj`` that read it, taken together.
Formula and source
    ``mean_s c_s^2`` with ``c_s = sum_t sum_{i in group} x_ti * dL_s/dx_ti``, x the input of ``o_proj`` or
    ``down_proj``, L_s the mean token loss of sequence s (arXiv:2204.09656, with a whole KV group or channel behind each
    gate).
Shapes and sums
    Sums over a group's columns and over the tokens of a sequence are float32 [B, G], B sequences at a time; they are
    squared and added up in float32 [G].
What it needs
    One forward and one backward pass; gradients of activations only, none of weights.
Cost
    Less than ``taylor``, and less than a plain forward and backward pass.
When it misleads
    It is a second-order view around the dense model; when half of the decoder leaves at once, the neighbourhood it
    describes may be long gone (on SmolLM2-135M ``taylor`` is better there, on Qwen2.5-Coder-0.5B it is not).
"""

from hgsp.scoring.methods.types import MaskMethod

FISHER = MaskMethod("fisher", "mask_grad_sq")
