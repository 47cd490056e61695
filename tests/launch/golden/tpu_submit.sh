#!/usr/bin/env bash
# configs/sweeps/pods_here.py: the runs that are missing, 2 at once.
# Made anew at each `python -m launch`, by what is done: not to be edited.
set -uo pipefail
cd "$(dirname "$0")" || exit 1

exec 8>"submit.sh.lock"
flock --nonblock 8 || { echo "$0: runs already"; exit 0; }

for run in e256 two_p256; do
  while [ "$(jobs -rp | wc -l)" -ge 2 ]; do
    wait -n
  done
  echo "$(date '+%F %T') $run: $run.txt"
  "./$run.sh" >>"$run.txt" 2>&1 8>&- &
done
wait
