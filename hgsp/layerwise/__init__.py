"""Forward and backward passes one layer at a time, with activations in memory or on disk."""
