"""The three-model study: its matrix of cells, their execution, and tables and plots of the results."""
