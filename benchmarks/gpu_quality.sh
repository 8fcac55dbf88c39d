#!/usr/bin/env bash
# Time of the recipe best, layer by layer, at LLaMA-3-8B's shape on one GPU, and whether its reconstruction keeps to the
# memory that docs/MEMORY.md says: about a minute. Needs what hgsp needs. Results: gpu_quality.json, here or in the folder
# given.
#
#   benchmarks/gpu_quality.sh [OUTPUT_FOLDER] [flags of reconstruction.py, such as --device cpu --tiny for a check]
set -euo pipefail
output="."
if [[ "${1:--}" != -* ]]; then
  output="$1"
  shift
fi
here="$(cd "$(dirname "$0")" && pwd)"
export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" "$here/reconstruction.py" --model LLaMA-3-8B --layers 2 --nsamples 64 --batch_size 4 \
  --device cuda --output "$output/gpu_quality.json" "$@"
