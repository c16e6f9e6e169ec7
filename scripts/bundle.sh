#!/usr/bin/env bash
# Builds the program with its CUDA plugin and gathers both, with all they need, in one folder that runs elsewhere.
#   scripts/bundle.sh [--with-tests] [--with-sanitizer] [--build-dir BUILD] [--no-archive] DIR
#     DIR/bin/polyreme, DIR/lib/*.so (libpolyreme_cuda.so among them), DIR.tar.zst beside it; DIR must be absent, empty or a bundle
#     --with-tests   also the tests that use a GPU, in DIR/tests
#     --with-sanitizer  also NVIDIA's compute-sanitizer, from PyPI, in DIR/sanitizer: not to be handed on, see its license
#     --build-dir    where to build (default build/cuda-release)
#     --no-archive   only the folder
# POLYREME_CUDA_ARCHS (default "80;86;89;90"): the GPU architectures it will run on. From the other machine come the driver, cuBLAS
# and NCCL, found by LD_LIBRARY_PATH, in the system's library folders or in /usr/local/cuda/lib64, in this order; and glibc.
set -euo pipefail
cd "$(dirname "$0")/.."

with_tests=0 with_sanitizer=0 archive=1 build=build/cuda-release out=
while [ $# -gt 0 ]; do
  case "$1" in
    --with-tests) with_tests=1 ;;
    --with-sanitizer) with_sanitizer=1 ;;
    --no-archive) archive=0 ;;
    --build-dir) build=${2:?--build-dir needs a folder}; shift ;;
    -h|--help) sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 0 ;;
    -*) echo "unknown argument $1; see --help" >&2; exit 2 ;;
    *) [ -z "$out" ] || { echo "one DIR, please: $out or $1?" >&2; exit 2; }; out=$1 ;;
  esac
  shift
done
[ -n "$out" ] || { echo "bundle.sh needs the folder to make; see --help" >&2; exit 2; }
if [ -n "$(ls -A "$out" 2>/dev/null)" ] && [ ! -e "$out/lib/libpolyreme_cuda.so" ]; then
  echo "$out is not empty, and not a bundle: name another folder" >&2
  exit 1
fi

archs=${POLYREME_CUDA_ARCHS:-80;86;89;90}
targets=(polyreme polyreme_cuda) tests=()
if [ "$with_tests" -eq 1 ]; then mapfile -t tests < <(grep -v '^#' scripts/gpu_tests.txt); fi
packages=(--cuda)
if [ "$with_tests" -eq 1 ]; then packages+=(--test); fi
scripts/install_packages.sh "${packages[@]}"
mkdir -p "$build"
# The preset's flags, in whatever folder is asked for.
cmake --preset cuda-release -B "$build" "-DPOLYREME_CUDA_ARCHS=$archs" \
  "-DPOLYREME_TESTS=$([ "$with_tests" -eq 1 ] && echo ON || echo OFF)" >"$build/configure.log" 2>&1 || {
  cat "$build/configure.log" >&2
  exit 1
}
cmake --build "$build" --target "${targets[@]}" "${tests[@]##*/}"
plugin=$(find "$build" -name libpolyreme_cuda.so -not -path '*/CMakeFiles/*' | head -n 1)
[ -n "$plugin" ] || { echo "the build made no libpolyreme_cuda.so" >&2; exit 1; }

rm -rf "$out"
mkdir -p "$out/bin" "$out/lib"
# glibc must be the host's, as its loader is; what the plugin opens at run time is never a NEEDED of anything.
glibc='^(ld-linux-x86-64|libc|libm|libmvec|libdl|libpthread|librt|libresolv|libutil|libanl)\.so'
nvidia='^lib(cuda|cudart|cublas|cublasLt|nccl|nvrtc|nvidia-.*)\.so'
declare -A copied=()

needed() { readelf -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\].*/\1/p'; }

# Copies the libraries of $1, and theirs, each under its soname; ldd says where the loader finds them.
add_libraries() {
  local name path
  local -A where=()
  while read -r name path; do
    where[$name]=$path
  done < <(ldd "$1" | awk '$2 == "=>" { print $1, ($3 == "not" ? "-" : $3) }')
  local queue=()
  mapfile -t queue < <(needed "$1")
  while [ ${#queue[@]} -gt 0 ]; do
    name=${queue[0]}
    queue=("${queue[@]:1}")
    if [[ $name =~ $glibc || -n ${copied[$name]:-} ]]; then continue; fi
    if [[ $name =~ $nvidia ]]; then
      echo "$1 is linked with $name, which has to be opened at run time instead" >&2
      return 1
    fi
    path=${where[$name]:--}
    [ "$path" != - ] || { echo "$1 needs $name, which is not on this machine" >&2; return 1; }
    copied[$name]=1
    install -m 0755 "$(readlink -f "$path")" "$out/lib/$name"
    local more=()
    mapfile -t more < <(needed "$path")
    queue+=("${more[@]}")
  done
}

# add FILE FOLDER: the file, into that folder of the bundle, with its libraries.
add() {
  mkdir -p "$out/$2"
  install -m 0755 "$1" "$out/$2/"
  add_libraries "$1"
}

add "$build/polyreme" bin
add "$plugin" lib
for test in "${tests[@]}"; do add "$build/$test" tests; done
mkdir -p "$out/models"
cp -r deploy/bench/configs/* "$out/models/"
cp LICENSE THIRD_PARTY_NOTICES.md "$out/"
cp scripts/gpu_report.sh scripts/check_gpu.py scripts/gpu_cluster.py scripts/make_dummy_model.py scripts/bench_transformers.py \
  scripts/check_against_transformers.py "$out/bin/"

files=("$out"/bin/polyreme "$out"/lib/*)
for test in "${tests[@]##*/}"; do files+=("$out/tests/$test"); done
strip --strip-unneeded "${files[@]}"
# shellcheck disable=SC2016
for file in "${files[@]}"; do
  case $file in
    # RUNPATH: LD_LIBRARY_PATH goes first, so that whoever has another cuBLAS or NCCL can say so.
    */libpolyreme_cuda.so) patchelf --set-rpath '$ORIGIN:/usr/local/cuda/lib64' "$file" ;;
    # RPATH: what the bundle carries is not to be replaced from outside.
    "$out"/lib/*) patchelf --force-rpath --set-rpath '$ORIGIN' "$file" ;;
    *) patchelf --force-rpath --set-rpath '$ORIGIN/../lib' "$file" ;;
  esac
done

if [ "$with_sanitizer" -eq 1 ]; then
  wheel="nvidia-cuda-sanitizer-api==13.0.85"
  hash=sha256:b1efff95f63b6fe40dc83801d598550542364393957775912a1abf396904331c
  echo "$wheel --hash=$hash" >"$build/sanitizer.txt"
  python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
    -r "$build/sanitizer.txt" -d "$build" || { echo "could not fetch $wheel by pip (see above)" >&2; exit 1; }
  python3 -m zipfile -e "$build"/nvidia_cuda_sanitizer_api-13.0.85-*.whl "$build/sanitizer"
  mkdir -p "$out/sanitizer"
  cp -r "$build/sanitizer/nvidia/cu13/bin" "$build/sanitizer/nvidia/cu13/lib" "$out/sanitizer/"
  chmod +x "$out"/sanitizer/bin/* "$out"/sanitizer/lib/*
fi

version=$(objdump -T "${files[@]}" 2>/dev/null | grep -oE 'GLIBC_[0-9.]+' | sort -Vu | tail -n 1)
echo "$out: ${#files[@]} files, $(du -sm --apparent-size "$out" | cut -f1) MiB, for GPU architectures $archs," \
  "wants glibc ${version#GLIBC_} or newer"
if [ "$archive" -eq 1 ]; then
  tar -C "$(dirname "$out")" -cf - "$(basename "$out")" | zstd -q -19 -T0 -f -o "$out.tar.zst"
  echo "$out.tar.zst: $(awk -v bytes="$(stat -c %s "$out.tar.zst")" 'BEGIN { printf "%.1f", bytes / 1048576 }') MiB"
fi
