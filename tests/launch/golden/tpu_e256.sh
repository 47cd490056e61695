#!/usr/bin/env bash
# configs/sweeps/pods_here.py: e256 on v5e:16x16, 256 chips of 64 VMs, spot.
# Made by `python -m launch`; edit it as you like: an edited file is kept.
set -uo pipefail

exec 9>"$0.lock"
flock --nonblock 9 || { echo "$0: runs already"; exit 0; }

NAME=tario-sweep-e256-7243e
NODES=(tario-sweep-e256-7243e)
RETRIES=2
BACK_OFF_S=10
LONGEST_S=600
place=(--project=my-project --zone=us-east5-a --quiet)

create() {
  gcloud compute tpus queued-resources create "$NAME" "${place[@]}" \
    --accelerator-type=v5litepod-256 \
    --runtime-version=v2-alpha-tpuv5-lite \
    --valid-until-duration=24h \
    --node-id=tario-sweep-e256-7243e \
    --spot
}

state() { # ABSENT, PROVISIONING, ACTIVE, SUSPENDED, FAILED …; UNKNOWN where gcloud does not say
  local told
  if told=$(gcloud compute tpus queued-resources describe "$NAME" "${place[@]}" \
    --format='value(state.state)' 2>"$0.err"); then
    echo "$told"
  elif grep -qiE 'NOT_FOUND|not found' "$0.err"; then
    echo ABSENT
  else
    cat "$0.err" >&2
    echo UNKNOWN
  fi
}

give_back() { # until they are gone: what is held is paid for
  local tries
  for tries in {1..60}; do
    [ "$(state)" = ABSENT ] && return
    gcloud compute tpus queued-resources delete "$NAME" "${place[@]}" --force || sleep 60
  done
  echo "$NAME: COULD NOT BE GIVEN BACK after $tries tries, and costs money: delete it by hand" >&2
}

on_first() {
  gcloud compute tpus tpu-vm ssh "${NODES[0]}" "${place[@]}" --worker=0 --command="${1/=ATTEMPT/=$attempt}"
}

on_all() { # every VM of every slice; 2, a mistake, where one of them says so, else the status of one that failed
  local node pids=() status=0 one
  for node in "${NODES[@]}"; do
    gcloud compute tpus tpu-vm ssh "$node" "${place[@]}" --worker=all --command="${1/=ATTEMPT/=$attempt}" &
    pids+=($!)
  done
  for node in "${pids[@]}"; do
    wait "$node"
    one=$?
    if [ "$one" -ne 0 ] && [ "$status" -ne 2 ]; then
      status=$one
    fi
  done
  return "$status"
}

the_run() {
  on_all 'sudo mkdir -p /sweeps; mountpoint -q /sweeps || sudo mount -t nfs -o hard 10.0.0.2:/sweeps /sweeps || { sudo apt-get -qq install -y nfs-common && sudo mount -t nfs -o hard 10.0.0.2:/sweeps /sweeps; } || { echo 10.0.0.2:/sweeps: cannot be mounted at /sweeps >&2; exit 1; }; sudo docker stop tario >/dev/null 2>&1; sudo docker run --rm --name tario --net=host --ipc=host --privileged --stop-timeout=35 -v /sweeps:/sweeps registry/tario:tpu python -m launch.attempt /sweeps/sweep/e256 --attempt=ATTEMPT -- train --config=configs/sweeps/pods_here.py:e256 --corpus=gs://tissue/corpus --workdir=/sweeps/sweep/e256 --start-timeout-s=1800' || return
  on_first 'sudo mkdir -p /sweeps; mountpoint -q /sweeps || sudo mount -t nfs -o hard 10.0.0.2:/sweeps /sweeps || { sudo apt-get -qq install -y nfs-common && sudo mount -t nfs -o hard 10.0.0.2:/sweeps /sweeps; } || { echo 10.0.0.2:/sweeps: cannot be mounted at /sweeps >&2; exit 1; }; sudo docker stop tario >/dev/null 2>&1; sudo docker run --rm --name tario --net=host --ipc=host --privileged --stop-timeout=35 -v /sweeps:/sweeps registry/tario:tpu env JAX_PLATFORMS=cpu python -m launch.attempt /sweeps/sweep/e256 --attempt=ATTEMPT -- evaluate --config=configs/sweeps/pods_here.py:e256 --workdir=/sweeps/sweep/e256 --corpus=gs://tissue/corpus --shared=/sweeps/sweep/kept' || return
}

failures=0
refusals=0
while true; do
  case "$(state)" in
  ABSENT)
    if ! create; then # no quota, or nothing like it there
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
    if [ $(($(date +%s) - attempt)) -ge 1800 ]; then # it got on
      failures=0
    fi
    if [ "$status" -eq 255 ]; then # a connection broke: that slices are taken away is told a little later
      sleep 60
    fi
    if [ "$(state)" = ACTIVE ]; then # nobody took the slices away: the run failed
      failures=$((failures + 1))
      if [ "$failures" -gt "$RETRIES" ]; then
        give_back
        exit "$status"
      fi
      pause=$((BACK_OFF_S * 2 ** (failures < 30 ? failures : 30) / 2))
      sleep $((pause < LONGEST_S ? pause : LONGEST_S)) # the slices are paid for meanwhile
    fi
    ;;
  SUSPENDED | SUSPENDING | FAILED) # taken away, or not to be had
    give_back
    sleep 60
    ;;
  *) sleep 30 ;;
  esac
done
