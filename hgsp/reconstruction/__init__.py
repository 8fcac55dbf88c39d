"""Reconstruction: refit the pruned model to the dense one layer by layer, without training."""
