"""Recover quality by training: LoRA or all parameters, on answers or on a dense teacher's distributions."""
