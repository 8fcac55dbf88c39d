"""What every command shares: exit codes, dataclasses as flags, progress, the log file, result folders."""
