"""Costs of groups in the units that people pay: parameters, bytes, operations, KV cache and measured time."""
