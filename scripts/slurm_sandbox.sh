#!/usr/bin/env bash
# A Slurm cluster of virtual nodes on this machine, for tests: everything it writes is in DIR, it listens on 127.0.0.1 only, and any
# user may run it. Needs the packages munge, slurmctld, slurmd and slurm-client.
#   scripts/slurm_sandbox.sh start DIR [NODES [CPUS]]   NODES (1) nodes n1, n2, ... of CPUS (4) each; DIR short, as it holds sockets
#   scripts/slurm_sandbox.sh stop DIR                   ends what start started, by pid
# Between the two:  SLURM_CONF=DIR/slurm.conf srun -n 4 COMMAND
set -euo pipefail
PATH=$PATH:/usr/sbin
usage() { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }

# Whether the pid in file $1 still runs program $2, and not another that came to that number.
runs() {
  local pid name state
  pid=$(cat "$1" 2>/dev/null) || return 1
  read -r _ name state _ 2>/dev/null <"/proc/$pid/stat" || return 1
  [ "$name" = "($2)" ] && [ "$state" != Z ]
}

# $1: command that is repeated every 50 ms until it fails, for at most $2 times.
while_true() {
  local i
  for ((i = 0; i < $2; ++i)); do
    eval "$1" || return 0
    sleep 0.05
  done
  return 1
}

stop() {
  local file name signal
  if runs "$dir/slurmctld.pid" slurmctld; then
    export SLURM_CONF=$dir/slurm.conf
    scancel --me || true
    while_true '[ -n "$(squeue -h)" ]' 300 || echo "jobs still run" >&2
  fi
  # All at once, and none is asked for long: their state goes with the directory.
  for signal in TERM KILL; do
    for file in "$dir"/slurmd.*.pid "$dir"/slurmctld.pid "$dir"/munged.pid; do
      name=$(basename "$file" .pid)
      runs "$file" "${name%%.*}" && kill -$signal "$(cat "$file")" || true
    done
    for file in "$dir"/slurmd.*.pid "$dir"/slurmctld.pid "$dir"/munged.pid; do
      name=$(basename "$file" .pid)
      while_true "runs $file ${name%%.*}" 20 || true
    done
  done
}

is_free() { ! (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# A port such that it and the next $1 are free.
free_ports() {
  local first i
  for _ in $(seq 50); do
    first=$((16000 + RANDOM % 6000))
    for ((i = 0; i <= $1; ++i)); do is_free $((first + i)) || continue 2; done
    echo "$first"
    return
  done
  echo "no free ports for Slurm" >&2
  return 1
}

write_config() {
  local host user port i
  host=$(uname -n) user=$(id -un)
  port=$(free_ports "$nodes")
  cat <<CONF
ClusterName=polyreme
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$dir/munge.socket
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.%n.log
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=10
CONF
  for ((i = 1; i <= nodes; ++i)); do
    echo "NodeName=n$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + i)) CPUs=$cpus"
  done
  echo "PartitionName=main Nodes=ALL Default=YES OverSubscribe=YES"
}

start() {
  local program i
  for program in munged slurmctld slurmd sinfo; do
    command -v "$program" >/dev/null || { echo "$program is not installed: scripts/install_packages.sh --test" >&2; exit 3; }
  done
  # slurmd initialises its cgroup plugin whatever the configuration says.
  grep -q ' /sys/fs/cgroup' /proc/self/mounts ||
    { echo "slurmd needs a cgroup file system, and none is mounted at /sys/fs/cgroup" >&2; exit 3; }
  mkdir -p "$dir/state" "$dir/key"
  chmod 0700 "$dir/key"
  (umask 077; head -c 1024 /dev/urandom >"$dir/key/munge")
  write_config >"$dir/slurm.conf"
  export SLURM_CONF=$dir/slurm.conf
  trap stop EXIT
  munged --force --key-file="$dir/key/munge" --seed-file="$dir/key/seed" --socket="$dir/munge.socket" \
    --pid-file="$dir/munged.pid" --log-file="$dir/munged.log"
  slurmctld
  for ((i = 1; i <= nodes; ++i)); do
    mkdir -p "$dir/n$i"
    slurmd -N "n$i"
  done
  for _ in $(seq 200); do
    if [ "$(sinfo -h -o '%t %D' 2>/dev/null)" = "idle $nodes" ]; then
      trap - EXIT
      echo "Slurm is up: $nodes nodes of $cpus CPUs; SLURM_CONF=$SLURM_CONF"
      return
    fi
    sleep 0.05
  done
  tail -n 5 "$dir"/*.log >&2
  echo "Slurm did not come up within 10 seconds" >&2
  exit 1
}

command=${1:-} nodes=${3:-1} cpus=${4:-4}
[ -n "${2:-}" ] || usage
mkdir -p "$2"
dir=$(cd "$2" && pwd)
case $command in
  start) start ;;
  stop) stop ;;
  *) usage ;;
esac
