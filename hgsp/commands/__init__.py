"""Subcommands of ``hgsp`` that have no script of their own."""
