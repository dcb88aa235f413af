#!/usr/bin/env bash
# One `foredraft pseudo` process for each GPU, or for each core without a GPU. They share one folder of shards.
#   ./generate_peudodataset_multigpus.sh --target MODEL --data train.jsonl.gz --out pseudo/ [options of foredraft pseudo]
# WORKERS=n sets the number of processes. Run the same command again to resume.
set -euo pipefail
# import this checkout; relative paths are those of the current folder
home=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH=$home${PYTHONPATH:+:$PYTHONPATH}
python=${PYTHON:-$([ -x "$home/.venv/bin/python" ] && echo "$home/.venv/bin/python" || echo python3)}
gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)
workers=${WORKERS:-$([ "$gpus" -gt 0 ] && echo "$gpus" || nproc)}
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true' INT TERM
for ((i = 0; i < workers; i++)); do
    if [ "$gpus" -gt 0 ]; then
        CUDA_VISIBLE_DEVICES=$((i % gpus)) "$python" -m foredraft pseudo "$@" --device cuda &
    else
        OMP_NUM_THREADS=1 FOREDRAFT_THREADS=1 "$python" -m foredraft pseudo "$@" &
    fi
    pids+=($!)
done
failed=0
for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
exit $failed
