#!/usr/bin/env bash
# configs/sweeps/pods_here.py: e256 on v5e:16x16, 256 chips of 64 hosts, spot.
# Made by `python -m launch`; edit it as you like: an edited file is kept.
set -uo pipefail

exec 9>"$0.lock"
flock --nonblock 9 || { echo "$0: runs already"; exit 0; }

NAME=tario-sweep-e256-7243e
NODES=(tario-sweep-e256-7243e)
RETRIES=2
place=(--project=my-project --zone=us-east5-a --quiet)

create() {
  gcloud compute tpus queued-resources create "$NAME" "${place[@]}" \
    --accelerator-type=v5litepod-256 \
    --runtime-version=v2-alpha-tpuv5-lite \
    --valid-until-duration=24h \
    --node-id=tario-sweep-e256-7243e \
    --spot
}

state() { # ABSENT, WAITING_FOR_RESOURCES, PROVISIONING, ACTIVE, SUSPENDED, FAILED …
  gcloud compute tpus queued-resources describe "$NAME" "${place[@]}" \
    --format='value(state.state)' 2>/dev/null || echo ABSENT
}

give_back() {
  [ "$(state)" = ABSENT ] || gcloud compute tpus queued-resources delete "$NAME" "${place[@]}" --force
}

on_first() {
  gcloud compute tpus tpu-vm ssh "${NODES[0]}" "${place[@]}" --worker=0 --command="${1//ATTEMPT/$attempt}"
}

on_all() { # every host of every slice; the status of the first slice that failed
  local node pids=() status=0
  for node in "${NODES[@]}"; do
    gcloud compute tpus tpu-vm ssh "$node" "${place[@]}" --worker=all --command="${1//ATTEMPT/$attempt}" &
    pids+=($!)
  done
  for node in "${pids[@]}"; do
    wait "$node" || status=$?
  done
  return "$status"
}

the_run() {
  true
  on_all 'sudo mkdir -p /sweeps; mountpoint -q /sweeps || sudo mount -t nfs -o hard 10.0.0.2:/sweeps /sweeps; sudo docker stop tario >/dev/null 2>&1; sudo docker run --rm --name tario --net=host --privileged --stop-timeout=35 -v /sweeps:/sweeps registry/tario:tpu python -m launch.attempt /sweeps/sweep/e256 --attempt=ATTEMPT -- train --config=configs/sweeps/pods_here.py:e256 --corpus=gs://tissue/corpus --workdir=/sweeps/sweep/e256' || return
  on_first 'sudo mkdir -p /sweeps; mountpoint -q /sweeps || sudo mount -t nfs -o hard 10.0.0.2:/sweeps /sweeps; sudo docker stop tario >/dev/null 2>&1; sudo docker run --rm --name tario --net=host --privileged --stop-timeout=35 -v /sweeps:/sweeps registry/tario:tpu env JAX_PLATFORMS=cpu python -m launch.attempt /sweeps/sweep/e256 --attempt=ATTEMPT -- evaluate --workdir=/sweeps/sweep/e256 --corpus=gs://tissue/corpus --shared=/sweeps/sweep/kept' || return
}

failures=0
refusals=0
while true; do
  case "$(state)" in
  ABSENT)
    if ! create; then # no quota, or the state was not told
      refusals=$((refusals + 1))
      [ "$refusals" -le "$RETRIES" ] || exit 1
      sleep 60
    fi
    ;;
  ACTIVE)
    refusals=0
    attempt=$(date +%s)
    the_run
    status=$?
    if [ "$status" -eq 0 ] || [ "$status" -eq 2 ]; then # done, or a mistake
      give_back
      exit "$status"
    fi
    if [ "$(state)" = ACTIVE ]; then # nobody took the slices away: the run failed
      failures=$((failures + 1))
      if [ "$failures" -gt "$RETRIES" ]; then
        give_back
        exit "$status"
      fi
      sleep $((10 * 2 ** failures))
    fi
    ;;
  SUSPENDED | SUSPENDING | FAILED) # taken away, or not to be had
    give_back
    sleep 60
    ;;
  *) sleep 30 ;;
  esac
done
