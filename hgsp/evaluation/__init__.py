"""Measure models, dense or pruned: perplexity, LAMBADA, zero-shot tasks, efficiency."""
