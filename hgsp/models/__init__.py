"""Models: families, geometry, loading, offload, the checkpoint format, and the one place that calls a layer."""
