#!/usr/bin/env bash
# Fuzzes every parser of outside bytes under AddressSanitizer and UBSan, from the corpora in tests/fuzz/corpus.
#   scripts/fuzz.sh [--seconds 60] [--jobs CORES] [--seed N] [target...]   targets: see tests/fuzz/CMakeLists.txt; default: all
#   --seed N: the same inputs in the same order each time, so that what CI finds can be found again (default: another each time)
# A finding is printed, kept as build/fuzz/found/<target>/..., and makes the exit status 1. Run it again with
#   build/fuzz/tests/fuzz/fuzz_<target> FILE
# When it is fixed, the file goes into tests/fuzz/corpus/<target>/ as found_<what>, where the plain suite replays it.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=60 jobs=$(nproc) seed=0 targets=()
while [ $# -gt 0 ]; do
  case "$1" in
    --seconds) seconds=${2:?--seconds needs a number}; shift 2 ;;
    --seed) seed=${2:?--seed needs a number}; shift 2 ;;
    --jobs) jobs=${2:?--jobs needs a number}; shift 2 ;;
    -h|--help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0 ;;
    -*) echo "unknown argument $1; see --help" >&2; exit 2 ;;
    *) targets+=("$1"); shift ;;
  esac
done
if [ ${#targets[@]} -eq 0 ]; then
  mapfile -t targets < <(ls tests/fuzz/corpus)
fi
for target in "${targets[@]}"; do
  [ -d "tests/fuzz/corpus/$target" ] || { echo "no target $target; there are: $(ls tests/fuzz/corpus | xargs)" >&2; exit 2; }
done

scripts/install_packages.sh --test --fuzz
folder=${POLYREME_FUZZ_BUILD:-build/fuzz}
mkdir -p "$folder"
cmake -S . -B "$folder" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_COMPILER=clang++-14 \
  -DPOLYREME_WERROR=OFF -DPOLYREME_SANITIZE=address,undefined,fuzzer-no-link >"$folder/cmake.log" 2>&1 || {
  cat "$folder/cmake.log" >&2
  exit 1
}
cmake --build "$folder" --target "${targets[@]/#/fuzz_}" >"$folder/build.log" 2>&1 || {
  grep -A20 -E 'FAILED|error:' "$folder/build.log" >&2
  exit 1
}

# One target: new inputs go to a working folder, so that the tree's corpus stays as it is.
fuzz_one() {
  local target=$1 found=$folder/found/$1 work=$folder/work/$1 log=$folder/$1.log dictionary=()
  mkdir -p "$found" "$work"
  [ -f "tests/fuzz/$target.dict" ] && dictionary=(-dict="tests/fuzz/$target.dict")
  local status=0
  UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 "$folder/tests/fuzz/fuzz_$target" \
    -max_total_time="$seconds" -seed="$seed" -timeout=5 -rss_limit_mb=2048 -malloc_limit_mb=1024 -max_len=8192 \
    -print_final_stats=1 -artifact_prefix="$found/" "${dictionary[@]}" "$work" "tests/fuzz/corpus/$target" \
    >"$log" 2>&1 || status=$?
  local runs coverage
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  coverage=$(grep -oE 'cov: [0-9]+ ft: [0-9]+' "$log" | tail -1)
  printf '%-12s %10s runs  %-24s %s\n' "$target" "${runs:-?}" "$coverage" "$([ "$status" -eq 0 ] && echo ok || echo "FOUND, see $log")"
  [ "$status" -eq 0 ] || { tail -40 "$log"; return 1; }
}
export -f fuzz_one
export folder seconds seed
printf '%s\n' "${targets[@]}" | xargs -P "$jobs" -I{} bash -c 'fuzz_one {}' || { echo "fuzzing found something" >&2; exit 1; }
