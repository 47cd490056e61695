#!/usr/bin/env bash
# configs/sweeps/pods_here.py: the runs that are missing, 2 at once.
# Made by `python -m launch`; edit it as you like: an edited file is kept.
set -uo pipefail
cd "$(dirname "$0")" || exit 1

for run in e256 two_p256; do
  while [ "$(jobs -rp | wc -l)" -ge 2 ]; do
    wait -n
  done
  echo "$(date '+%F %T') $run: $run.txt"
  "./$run.sh" >>"$run.txt" 2>&1 &
done
wait
