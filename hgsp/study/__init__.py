"""The three-model study: its matrix of cells, running them, and the table and plots over what they left."""
