#!/usr/bin/env bash
# Runs the three-model study into results/{MODEL}/prune_{PERCENT}; see --help (hgsp/cli/study.py).
# Uses the active virtual environment, else the repository's .venv, else python3.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python=python3
for environment in "$root/.venv" "${VIRTUAL_ENV:-}"; do
  if [ -n "$environment" ] && [ -x "$environment/bin/python" ]; then python="$environment/bin/python"; fi
done
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m hgsp.cli.study "$@"
