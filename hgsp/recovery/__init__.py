"""Brings quality back by training: LoRA or all parameters, on answers or on the dense parent's distributions."""
