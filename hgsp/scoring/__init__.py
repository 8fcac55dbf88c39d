"""Importance of every group: methods, statistics, normalization, the H-GSP prior, scores on disk."""
