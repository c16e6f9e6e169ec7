#!/usr/bin/env bash
# From a fresh clone to a green suite: installs, builds in Release, runs every test through ctest.
#   scripts/test.sh [--sanitize | --sanitizers-only [address|thread] | --cuda]
#     --sanitize  before that, all suites but e2e under AddressSanitizer + UBSan, and those with threads or ranks
#                 (label threads) under ThreadSanitizer
#     --sanitizers-only  instead a short form: the suites labelled memory under AddressSanitizer + UBSan, and those labelled
#                 threads under ThreadSanitizer; or one of the two
#     --cuda      instead the CUDA plugin and its tests, for one architecture (POLYREME_CUDA_ARCHS, default 90), and the
#                 check of sm_70; needs nvcc, but no GPU: tests that want one say so and are skipped
set -euo pipefail
cd "$(dirname "$0")/.."

sanitize='' plain=1 cuda=0  # sanitize: all, or which of address and thread, in their short form
while [ $# -gt 0 ]; do
  case "$1" in
    --sanitize) sanitize=all ;;
    --sanitizers-only)
      sanitize="address thread" plain=0
      case "${2:-}" in address | thread) sanitize=$2; shift ;; esac ;;
    --cuda) cuda=1 ;;
    -h|--help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "unknown argument $1; see --help" >&2; exit 2 ;;
  esac
  shift
done

# configure FOLDER CMAKE_FLAGS...
configure() {
  local folder=$1
  shift
  cmake -S . -B "build/$folder" -G Ninja -DCMAKE_BUILD_TYPE=Release "$@" >build/cmake.log 2>&1 || {
    cat build/cmake.log >&2
    return 1
  }
}

# build_and_test FOLDER TARGET LABEL_FILTER CMAKE_FLAGS...
build_and_test() {
  local folder=$1 target=$2 filter=$3
  shift 3
  configure "$folder" "$@"
  cmake --build "build/$folder" --target "$target"
  # shellcheck disable=SC2086
  (cd "build/$folder" && ctest --no-tests=error --output-on-failure -j "$(nproc)" $filter)
}

# By clang: it takes half of gcc's time to compile what both sanitizers check.
# build_and_test_address TARGET LABEL_FILTER
build_and_test_address() {
  scripts/install_packages.sh --fuzz
  build_and_test asan "$1" "$2" -DPOLYREME_SANITIZE=address,undefined -DCMAKE_CXX_COMPILER=clang++-14 -DPOLYREME_WERROR=OFF
}

# The plugin and the tests that use it, nothing else; what a machine without a GPU can run of them is run. In the plain suite's
# folder: all that the two have in common is compiled once.
build_and_test_cuda() {
  if ! [ -x "${CUDACXX:-${CUDA_HOME:-/usr/local/cuda}/bin/nvcc}" ] && ! command -v nvcc >/dev/null; then
    echo "test.sh --cuda needs the CUDA toolkit, 12.4 or newer, and found no nvcc: put it on the PATH, or set CUDACXX to it" >&2
    return 1
  fi
  scripts/install_packages.sh --test --cuda
  configure test -DPOLYREME_CUDA=ON "-DPOLYREME_CUDA_ARCHS=${POLYREME_CUDA_ARCHS:-90}"
  grep -iE 'flashinfer|cuda' build/cmake.log || true
  local tests=()
  mapfile -t tests < <(grep -v '^#' scripts/gpu_tests.txt)
  cmake --build build/test --target polyreme_cuda "${tests[@]##*/}"
  local test
  for test in "${tests[@]}"; do
    echo "== ${test##*/}"
    POLYREME_CUDA_PLUGIN=$PWD/build/test/libpolyreme_cuda.so "build/test/$test" --gtest_brief=1
  done
  scripts/check_sm70.sh
}

mkdir -p build
if [ "$cuda" -eq 1 ]; then
  build_and_test_cuda
  exit
fi
scripts/install_packages.sh --test
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export TSAN_OPTIONS="suppressions=$PWD/scripts/tsan.supp ignore_noninstrumented_modules=1"
case "$sanitize" in
  all) build_and_test_address all "-LE e2e" ;;
  *address*) build_and_test_address suite_memory "-L memory" ;;
esac
case "$sanitize" in all | *thread*) build_and_test tsan suite_threads "-L threads" -DPOLYREME_SANITIZE=thread ;; esac
[ "$plain" -eq 1 ] || exit 0
rm -f build/test/libpolyreme_cuda.so  # of an earlier --cuda: this suite is of the program alone
build_and_test test all "" -DPOLYREME_CUDA=OFF
