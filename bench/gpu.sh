#!/usr/bin/env bash
# Checks and times foredraft on a GPU machine, from a bare checkout: bash bench/gpu.sh
# Records, log and gpu.json go to the folder $OUT (default bench/results/gpu). Tables come last, then one line of JSON.
set -euo pipefail
cd "$(dirname "$0")/.."
export OUT="${OUT:-bench/results/gpu}" PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
mkdir -p "$OUT"
python3 -m foredraft bench gpu --out "$OUT" "$@" 2>&1 | tee "$OUT/gpu.log"
