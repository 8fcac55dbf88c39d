"""From scores to a pruned model: selection under one budget, surgery, and plans applied without surgery."""
