"""From scores to a smaller model: selection under one budget, surgery, and plans tried without surgery."""
