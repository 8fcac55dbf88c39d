"""Refits the weights that remain to the dense model's outputs, layer by layer, without training."""
