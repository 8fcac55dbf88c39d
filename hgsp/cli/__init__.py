"""The command ``hgsp`` and its subcommands."""
