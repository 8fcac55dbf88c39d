"""Budget allocation: searches widths per layer and kind that lower the KL divergence from the dense model."""
