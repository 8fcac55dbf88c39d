"""Forward and backward passes one layer at a time, and where activations go when memory is short."""
