"""Budget allocation: search for the widths per layer and kind with the lowest KL divergence from the dense model."""
