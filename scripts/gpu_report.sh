#!/usr/bin/env bash
# Checks and measures on this machine's GPUs, and writes OUT/report.md: one table, with GPU, driver, commit, date, commands and
# the roofline measured in the same run; every output as it was printed lies beside it, in OUT/raw.
#   scripts/gpu_report.sh OUT [--only SECTION,...] [--model DIR] [--program FILE] [--tests DIR] [--limit SECONDS]
#     sections   checks devices ops step throughput transformers (all, in this order; layouts tp1, and with two GPUs tp2, pp2);
#                only when asked for: sanitizer, memcheck, racecheck and initcheck over the ops; logits, the siblings'
#                log-probabilities against Transformers' (30 GB of scratch in TMPDIR); cluster,
#                scripts/check_gpu.py, the whole program end to end (about 8 minutes; CLUSTER_CHECKS: which of its checks);
#                sweep, `polyreme bench sweep` of each layout into OUT/sweep-* (hours; SWEEP_FLAGS: less of it)
#     --model    folder of a config.json; weights are made up (default: the 40B shape's)
#     --program  polyreme (default: beside this script, then build/cuda-release, then build/test)
#     --tests    folder of GPU test binaries (default: tests of the bundle, or those named in scripts/gpu_tests.txt)
#     --limit    seconds for each command (default: 300; what takes longer is ended and said to have)
# Runs in a checkout and in a bundle (scripts/bundle.sh). POLYREME_COMMIT names the commit where there is no git.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/.." && pwd)

out='' only=checks,devices,ops,step,throughput,transformers model='' program='' tests='' limit=300
while [ $# -gt 0 ]; do
  case "$1" in
    --only) only=$2; shift ;;
    --model) model=$2; shift ;;
    --program) program=$2; shift ;;
    --tests) tests=$2; shift ;;
    --limit) limit=$2; shift ;;
    -h|--help) sed -n '2,15s/^# \{0,1\}//p' "$0"; exit 0 ;;
    -*) echo "unknown argument $1; see --help" >&2; exit 2 ;;
    *) out=$1 ;;
  esac
  shift
done
[ -n "$out" ] || { echo "gpu_report.sh needs the folder to write to; see --help" >&2; exit 2; }
mkdir -p "$out/raw"

first_of() { for file in "$@"; do if [ -e "$file" ]; then echo "$file"; return; fi; done; }
program=${program:-$(first_of "$here/polyreme" "$root/build/cuda-release/polyreme" "$root/build/test/polyreme")}
[ -x "$program" ] || { echo "no polyreme to measure: build a bundle, or give --program" >&2; exit 1; }
plugin=$(first_of "$(dirname "$program")/libpolyreme_cuda.so" "$(dirname "$program")/../lib/libpolyreme_cuda.so")
[ -n "$plugin" ] && export POLYREME_CUDA_PLUGIN=$plugin  # tests lie elsewhere
model=${model:-$(first_of "$root/models/iquest-coder-v1-40b" "$root/deploy/bench/configs/iquest-coder-v1-40b")}
commit=${POLYREME_COMMIT:-$(git -C "$root" rev-parse --short HEAD 2>/dev/null || echo unknown)}
command -v nvidia-smi >/dev/null || { echo "no nvidia-smi: is there a driver?" >&2; exit 1; }
gpus=$(nvidia-smi --query-gpu=name --format=csv,noheader | wc -l)
gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1)
driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1)
[ "$gpus" -gt 0 ] || { echo "no GPU here" >&2; exit 1; }
# Multicast over NVLink is never needed, and where it is broken it hangs.
export NCCL_NVLS_ENABLE=${NCCL_NVLS_ENABLE:-0}
# cuBLAS and NCCL may only be there as Python packages.
packaged=$(python3 -c 'import glob, site, sys
paths = site.getsitepackages() + sys.path
print(":".join(sorted({d for p in paths for d in glob.glob(p + "/nvidia/*/lib")})))' 2>/dev/null || true)
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/usr/local/cuda/lib64${packaged:+:$packaged}

wanted() { [[ ",$only," == *",$1,"* ]]; }

# measure NAME COMMAND...: under the time limit, printed and kept; remembers the command for the report.
commands=() results=()
measure() {
  local name=$1 start=$SECONDS code=0
  shift
  echo "== $name: $*"
  timeout -k 10 "$limit" "$@" >"$out/raw/$name.txt" 2>&1 || code=$?
  tail -n 60 "$out/raw/$name.txt"
  local said=ok
  if [ "$code" -eq 124 ] || [ "$code" -eq 137 ]; then said="ended after $limit s"; elif [ "$code" -ne 0 ]; then said="exit $code"; fi
  echo "-- $name: $said, $((SECONDS - start)) s"
  commands+=("$*")
  results+=("$name|$said|$((SECONDS - start))")
}

layouts=("tp1:-tp 1 -pp 1")
if [ "$gpus" -ge 2 ]; then layouts+=("tp2:-tp 2 -pp 1" "pp2:-tp 1 -pp 2"); fi

if wanted checks; then
  binaries=()
  if [ -n "$tests" ]; then
    binaries=("$tests"/*)
  elif [ -d "$root/tests/data" ]; then
    while read -r name; do binaries+=("$(dirname "$program")/$name"); done < <(grep -v '^#' "$root/scripts/gpu_tests.txt")
  else
    binaries=("$root/tests"/*)
  fi
  for binary in "${binaries[@]}"; do
    if [ -x "$binary" ]; then measure "check-${binary##*/}" "$binary" --gtest_brief=1; fi
  done
fi
if wanted sanitizer; then
  checker=$(first_of "$root/sanitizer/bin/compute-sanitizer" /usr/local/cuda/bin/compute-sanitizer \
    /usr/local/cuda/compute-sanitizer/compute-sanitizer)
  ops_test=$(first_of ${tests:+"$tests/worker_ops_test"} "$root/tests/worker_ops_test" \
    "$(dirname "$program")/tests/worker/worker_ops_test")
  if [ -z "$checker" ] || [ -z "$ops_test" ]; then
    echo "-- sanitizer: no compute-sanitizer or no worker_ops_test here (bundle.sh --with-tests --with-sanitizer)"
  else
    for tool in memcheck racecheck initcheck; do
      measure "$tool" "$checker" --tool "$tool" --error-exitcode 9 "$ops_test" --gtest_brief=1 --gtest_filter='*cuda*:*Cuda*'
    done
  fi
fi
demo=$(first_of "$root/deploy/demo-model" "$root/models/demo-model" deploy/demo-model)
if wanted cluster; then
  cluster=(python3 "$here/check_gpu.py" --program "$program" --gpus "$((gpus < 2 ? 1 : 2))")
  cluster+=(${demo:+--model-demo "$demo"} ${CLUSTER_CHECKS:+--only "$CLUSTER_CHECKS"})
  limit=$((limit > 900 ? limit : 900)) measure cluster "${cluster[@]}"
fi
if wanted devices; then measure devices "$program" devices --measure; fi
cache=$out/raw/products
mkdir -p "$cache"
model_flags=(--load-format dummy --device cuda --cache-dir "$cache")
if wanted ops; then
  measure ops-tp1 "$program" bench ops "$model" --device cuda --cache-dir "$cache"
  measure ops-tp2 "$program" bench ops "$model" --device cuda --cache-dir "$cache" -tp 2
fi
for section in step throughput; do
  wanted "$section" || continue
  for layout in "${layouts[@]}"; do
    read -ra flags <<<"${layout#*:}"
    sizes=(--context 2048 --batch "1,16,64" --steps 64)
    if [ "$section" = throughput ]; then sizes=(--num-prompts 192 --input-len 1024 --output-len 1024); fi
    measure "$section-${layout%%:*}" "$program" bench "$section" "$model" "${model_flags[@]}" "${flags[@]}" "${sizes[@]}"
  done
done
if wanted sweep; then
  served=$out/raw/$(basename "$model")
  measure tokenizer python3 "$here/make_dummy_model.py" "$model" "${demo:?no demo model, whose tokenizer is needed}" "$served"
  for layout in "${layouts[@]}"; do
    read -ra flags <<<"${layout#*:}"
    read -ra more <<<"${SWEEP_FLAGS:-}"
    limit=$((limit > 14400 ? limit : 14400)) measure "sweep-${layout%%:*}" "$program" bench sweep "$served" --device cuda \
      --load-format dummy --ignore-eos "${flags[@]}" "${more[@]}" --output "$out/sweep-${layout%%:*}"
  done
fi
has_transformers() { python3 -c 'import torch, transformers' 2>/dev/null; }
if wanted logits && has_transformers; then
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  for size in 7b 14b; do
    measure "save-$size" "$program" serve "${model%-*}-$size" --load-format dummy --save-checkpoint "$scratch/$size"
    measure "logits-$size" python3 "$here/check_against_transformers.py" "$scratch/$size" --program "$program"
    rm -rf "${scratch:?}/$size"
  done
fi
if wanted transformers; then
  if has_transformers; then
    measure transformers python3 "$here/bench_transformers.py" "$model"
  else
    echo "-- transformers: python3 has no torch with transformers here, so that there is nothing to compare with"
    results+=("transformers|no torch with transformers on this machine|0")
  fi
fi

# row LAYOUT < a bench's output: its figures as rows of the table.
rows() {
  awk -v layout="$1" '
    /^(decode|prompt) / && NF >= 8 {
      what = $0; sub(/  +.*/, "", what)
      share = ($NF == "%") ? $(NF - 1) " %" : "-"
      shift = ($NF == "%") ? 1 : 0
      printf "| %s | %s | %.2f ms | %.1f | %.2f ms | %s |\n", layout, what, $(NF-shift-4) / 1000, $(NF-shift-2), $(NF-shift-1) / 1000, share
    }
    /^[0-9]+ requests of / { what = $1 " x (" $4 " + " $6 ")" }
    /^output / { printf "| %s | offline %s | - | %s | %s tokens/s | %s %% |\n", layout, what, $2, $9, $(NF - 1) }
    /^transformers (decode|prompt)/ { printf "| Transformers | %s %s | %s ms | %s | - | - |\n", $2, $3, $4, $5 }' 
}

{
  echo "# $gpu x $gpus, $(date -u +%Y-%m-%d)"
  echo
  echo "Commit $commit, driver $driver, $(uname -sr), $(basename "$model") shape, random weights. At best: what the same run measured"
  echo "for reading and multiplying on the same GPUs, and nothing for launches, sums over ranks and sampling."
  echo
  grep -hm 2 -A1 ' x .*driver' "$out"/raw/step-*.txt 2>/dev/null | grep -v '^--' | sed 's/^/    /' | sort -u
  echo
  echo "| layout | what | time | tokens/s | at best | share |"
  echo "|---|---|---|---|---|---|"
  for name in step-tp1 step-tp2 step-pp2 throughput-tp1 throughput-tp2 throughput-pp2 transformers; do
    if [ -e "$out/raw/$name.txt" ]; then rows "${name##*-}" <"$out/raw/$name.txt"; fi
  done
  echo
  grep -h '^all: ours' "$out"/raw/logits-*.txt 2>/dev/null
  echo
  echo "| part | ended | seconds |"
  echo "|---|---|---|"
  for result in "${results[@]}"; do echo "| ${result//|/ | } |"; done
  echo
  echo '```'
  printf '%s\n' "${commands[@]}"
  echo '```'
} >"$out/report.md"
echo "wrote $out/report.md"
[[ "${results[*]}" != *"exit "* && "${results[*]}" != *"ended after"* ]]
