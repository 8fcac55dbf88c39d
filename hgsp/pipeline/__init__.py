"""The pruning command: configuration, checked request, the stages in order, and the report."""
