#!/usr/bin/env bash
# Time of the recipe best, layer by layer, at LLaMA-3-8B's shape on one GPU, and whether its reconstruction keeps to the
# memory that docs/MEMORY.md says: about a minute. Needs what hgsp needs. Takes the flags of reconstruction.py, such as
# --output FILE (default: gpu_quality.json), or --device cpu --tiny for a check on a CPU.
set -euo pipefail
benchmarks="$(cd "$(dirname "$0")" && pwd)"
PYTHONPATH="$benchmarks/..${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python}" "$benchmarks/reconstruction.py" \
  --model LLaMA-3-8B --layers 2 --nsamples 64 --batch_size 4 --device cuda --output gpu_quality.json "$@"
