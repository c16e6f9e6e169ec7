#!/usr/bin/env bash
# Serves MODEL under Open MPI's mpirun, one rank per slot; the first host has rank 0 and the public port.
#   deploy/mpi/serve.sh localhost:4 MODEL -tp 2 -pp 2 [flags of polyreme serve]
#   deploy/mpi/serve.sh node1:2,node2:2 MODEL -tp 2 -pp 2
# POLYREME names the program, at the same path on all hosts (default: build/release/polyreme of
# this tree). SIGTERM or Ctrl-C ends it after what runs has finished; a second one at once.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
hosts=$1
shift
here=$(cd "$(dirname "$0")/../.." && pwd)
polyreme=${POLYREME:-$here/build/release/polyreme}
[ -x "$polyreme" ] || { echo "$polyreme is not there: build it, or set POLYREME" >&2; exit 1; }

ranks=0
IFS=, read -ra entries <<<"$hosts"
for entry in "${entries[@]}"; do
  slots=1
  [[ $entry == *:* ]] && slots=${entry##*:}
  ranks=$((ranks + slots))
done

# Ranks are processes with threads of their own: mpirun must not pin each to one core.
mpirun=(mpirun --host "$hosts" -np "$ranks" --bind-to none --oversubscribe)
[ "$(id -u)" -eq 0 ] && mpirun+=(--allow-run-as-root)

meet=()
if [ ${#entries[@]} -gt 1 ]; then
  export POLYREME_JOB_TOKEN=${POLYREME_JOB_TOKEN:-$(head -c 24 /dev/urandom | od -An -v -tx1 | tr -d ' \n')}
  mpirun+=(-x POLYREME_JOB_TOKEN)
  if [[ " $* " != *" --coordinator"* ]]; then
    first=${entries[0]%%:*}
    address=$(getent ahostsv4 "$first" | awk 'NR == 1 { print $1 }')
    [ -n "$address" ] || { echo "$first does not resolve: give --coordinator ADDRESS:PORT" >&2; exit 1; }
    meet=(--coordinator "$address:$((23000 + RANDOM % 8000))")
  fi
fi
# mpirun answers SIGTERM with SIGKILL for all within seconds, but passes SIGUSR2 on: the ranks take it
# as the wish to end. (SIGUSR1 too, but not with PMIx 5.) In a session of its own, so that a terminal's
# Ctrl-C comes to us alone.
setsid "${mpirun[@]}" "$polyreme" serve "$@" "${meet[@]}" &
job=$!
stop=USR2
trap 'kill -$stop $job; stop=TERM' TERM INT
while kill -0 "$job" 2>/dev/null; do
  code=0
  wait "$job" || code=$?
done
exit "$code"
