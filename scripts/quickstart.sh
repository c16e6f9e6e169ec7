#!/usr/bin/env bash
# From a fresh clone to an answered prompt: installs what is missing, builds, serves the embedded demo model with two tensor-parallel
# ranks through mpirun, streams a completion and a chat answer, and stops.
#   scripts/quickstart.sh [--keep] [--port PORT]     --keep leaves it serving until Ctrl-C
set -euo pipefail
cd "$(dirname "$0")/.."

keep=0
port=8000
while [ $# -gt 0 ]; do
  case "$1" in
    --keep) keep=1 ;;
    --port) port=${2:?--port needs a number}; shift ;;
    -h|--help) sed -n '2,4s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "unknown argument $1; see --help" >&2; exit 2 ;;
  esac
  shift
done

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

say "1/4  packages"
scripts/install_packages.sh
say "2/4  build (the first one takes some minutes)"
mkdir -p build
scripts/build.sh

say "3/4  mpirun -np 2 polyreme serve deploy/demo-model -tp 2"
log=build/quickstart.log
mpirun=(mpirun -np 2 --oversubscribe --bind-to none)
[ "$(id -u)" -eq 0 ] && mpirun+=(--allow-run-as-root)
"${mpirun[@]}" build/release/polyreme serve deploy/demo-model -tp 2 --port "$port" \
  --shutdown-timeout 5 >"$log" 2>&1 &
cluster=$!
stop() {
  trap - EXIT INT TERM
  kill -TERM "$cluster" 2>/dev/null || true
  wait "$cluster" 2>/dev/null || true
}
trap stop EXIT
trap 'stop; exit 130' INT TERM

url="http://127.0.0.1:$port"
for _ in $(seq 600); do
  kill -0 "$cluster" 2>/dev/null || { cat "$log" >&2; echo "the cluster did not start" >&2; exit 1; }
  grep -q 'ready: serving' "$log" && break
  read -rt 0.1 <> <(:) || true
done
curl -sf "$url/health" >/dev/null || { cat "$log" >&2; echo "the cluster is not ready" >&2; exit 1; }
grep 'ready: ' "$log"

# Streams one answer to the terminal and says how fast it came. $1: path, $2: jq filter of a chunk's text, $3: body.
ask() {
  local started finished usage
  started=$(date +%s.%N)
  curl -sN "$url$1" -H 'Content-Type: application/json' -d "$3" |
    sed -u -n 's/^data: //p' | sed -u '/^\[DONE\]$/d' | tee build/quickstart.sse |
    jq --unbuffered -j "$2 // empty"
  finished=$(date +%s.%N)
  usage=$(jq -s 'map(.usage // empty) | last | .completion_tokens' build/quickstart.sse)
  echo
  awk -v n="$usage" -v a="$started" -v b="$finished" \
    'BEGIN { printf "  [%d tokens in %.2f s, %.0f tok/s]\n", n, b - a, n / (b - a) }'
}

say "4/4  a completion, then a chat"
prompt=$'def read_file(path):\n    """Read a file and return its lines."""\n'
question='Write a Python function that merges two sorted lists.'
common='"model": "demo-model", "temperature": 0, "stream": true, "stream_options": {"include_usage": true}'
printf '%s' "$prompt"
ask /v1/completions '.choices[0].text' \
  "$(jq -n --arg p "$prompt" "{$common, prompt: \$p, max_tokens: 64}")"
printf '\n> %s\n' "$question"
ask /v1/chat/completions '.choices[0].delta.content' \
  "$(jq -n --arg q "$question" "{$common, messages: [{role: \"user\", content: \$q}], max_tokens: 128}")"

say "Talk to it yourself"
cat <<TXT
  build/release/polyreme serve deploy/demo-model -tp 2          # alone on this host
  mpirun -np 2 build/release/polyreme serve deploy/demo-model -tp 2
  curl $url/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{"model":"demo-model","messages":[{"role":"user","content":"Who are you?"}]}'
TXT
if [ "$keep" -eq 1 ]; then
  say "Serving at $url until Ctrl-C (log: $log)"
  wait "$cluster"
fi
