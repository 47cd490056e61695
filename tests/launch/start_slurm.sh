#!/usr/bin/env bash
# A Slurm of one node on this machine, for tests: start_slurm.sh FOLDER. Needs root, and Debian or Ubuntu; installs
# slurm-wlm where it is missing. Prints the path of slurm.conf (for SLURM_CONF). stop_slurm: kill the pids in FOLDER/*.pid.
#
# auth/none: whoever reaches it is who he says he is; it listens on this machine's loopback only. The node claims eight
# CPUs: jobs share what there is.
set -euo pipefail

folder=$1
mkdir -p "$folder"/state "$folder"/spool

if ! command -v slurmctld >/dev/null; then
  {
    apt-get update
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends slurm-wlm
  } >"$folder/install.txt" 2>&1
fi

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

host=$(hostname -s)
cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
AuthType=auth/none
CredType=cred/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,batch_sched_delay=1
AuthInfo=cred_expire=5
MinJobAge=3600
KillWait=30
ReturnToService=2
JobRequeue=1
NodeName=$host NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=test Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF

export SLURM_CONF=$folder/slurm.conf
slurmctld
slurmd

for _ in $(seq 60); do
  if [ "$(sinfo --noheader --format=%t 2>/dev/null)" = idle ]; then
    echo "$SLURM_CONF"
    exit 0
  fi
  sleep 0.5
done
tail -n 5 "$folder"/slurmctld.log "$folder"/slurmd.log >&2
echo "start_slurm.sh: the node did not come up within 30 s" >&2
exit 1
