"""Text and rows: named texts, users' files, and calibration windows of tokens."""
