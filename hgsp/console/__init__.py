"""Code shared by all commands: exit codes, dataclasses as flags, progress, the log file, result folders."""
