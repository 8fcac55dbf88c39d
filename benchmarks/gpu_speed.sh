#!/usr/bin/env bash
# Speed of LLaMA-3-8B's shape pruned by 20 %, with widths in multiples of 1, 64, 128 and 256, on one GPU, in under ten
# minutes. Needs torch, transformers and hgsp; fewer than 32 layers are timed where memory is short. Results:
# gpu_speed.json and .md, here or in the folder given, after every batch size.
#
#   benchmarks/gpu_speed.sh [OUTPUT_FOLDER] [flags of gpu_speed.py, such as --tiny for a check on a CPU]
set -euo pipefail
output="."
if [[ "${1:--}" != -* ]]; then
  output="$1"
  shift
fi
exec "${PYTHON:-python}" "$(dirname "$0")/gpu_speed.py" --output "$output/gpu_speed.json" "$@"
