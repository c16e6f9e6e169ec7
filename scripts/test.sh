#!/usr/bin/env bash
# From a fresh clone to a green suite: installs, builds in Release, runs every test through ctest.
#   scripts/test.sh [--sanitize]
#     --sanitize  afterwards the suites under AddressSanitizer + UBSan, and the multi-rank ones under ThreadSanitizer
set -euo pipefail
cd "$(dirname "$0")/.."

sanitize=0
for argument in "$@"; do
  case "$argument" in
    --sanitize) sanitize=1 ;;
    -h|--help) sed -n '2,4s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "unknown argument $argument; see --help" >&2; exit 2 ;;
  esac
done

scripts/install_packages.sh --test
mkdir -p build

# build_and_test FOLDER LABEL_FILTER CMAKE_FLAGS...
build_and_test() {
  local folder=$1 filter=$2
  shift 2
  cmake -S . -B "build/$folder" -G Ninja -DCMAKE_BUILD_TYPE=Release "$@" >build/cmake.log 2>&1 || {
    cat build/cmake.log >&2
    return 1
  }
  cmake --build "build/$folder"
  # shellcheck disable=SC2086
  (cd "build/$folder" && ctest --output-on-failure -j "$(nproc)" $filter)
}

if [ "$sanitize" -eq 1 ]; then
  export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
  export TSAN_OPTIONS="suppressions=$PWD/scripts/tsan.supp ignore_noninstrumented_modules=1"
  build_and_test asan "-LE e2e" -DPOLYREME_SANITIZE=address,undefined
  build_and_test tsan "-L threads" -DPOLYREME_SANITIZE=thread
fi
build_and_test test ""
