#!/usr/bin/env bash
# Proves that the kernels which must serve sm_70 (V100) use nothing above it, by assembling them to sm_70 machine code.
#   scripts/check_sm70.sh [SOURCE.cu...]    default: every source that must serve sm_70
# Needs nvcc. One that still knows sm_70 (CUDA 12) does it all. A newer one compiles as far as PTX, with __CUDA_ARCH__ of
# 700 and the lowest target it has; the PTX is then assembled for sm_70 by the last ptxas that can, which comes by pip,
# pinned by hash (40 MB, once, into build/sm70). ptxas refuses each instruction that sm_70 lacks.
set -euo pipefail
cd "$(dirname "$0")/.."

sources=("$@")
if [ ${#sources[@]} -eq 0 ]; then
  for name in elementwise gemv paged_attention sample_kernels weight_kernels; do
    sources+=("worker/backend/cuda/$name.cu")
  done
fi
wheel=nvidia-cuda-nvcc-cu12==12.9.86
wheel_hash=sha256:5d6a0d32fdc7ea39917c20065614ae93add6f577d840233237ff08e9a38f58f0
ptx_version=8.8  # the newest that this ptxas reads
scratch=build/sm70
nvcc=$(command -v "${CUDACXX:-nvcc}" || echo "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc")
[ -x "$nvcc" ] || { echo "check_sm70: no nvcc (looked for ${CUDACXX:-nvcc} and $nvcc); set CUDACXX to it" >&2; exit 1; }
mkdir -p "$scratch/tmp"
export TMPDIR=$PWD/$scratch/tmp
trap 'rm -rf "$TMPDIR"' EXIT
options=(-std=c++17 -O3 -I.)

fetch_ptxas() {
  ptxas=$scratch/ptxas-${wheel##*==}
  [ -x "$ptxas" ] && return 0
  if ! python3 -m pip --version >/dev/null 2>&1; then
    echo "check_sm70: this nvcc cannot assemble for sm_70, and the ptxas that can comes by pip: install python3-pip" >&2
    return 1
  fi
  echo "$wheel --hash=$wheel_hash" >"$scratch/requirements.txt"
  python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
    -r "$scratch/requirements.txt" -d "$scratch" || {
    echo "check_sm70: could not fetch $wheel by pip (see above); without it sm_70 cannot be checked here" >&2
    return 1
  }
  python3 - "$scratch" "$ptxas" <<'PYTHON'
import glob, os, sys, zipfile
scratch, ptxas = sys.argv[1:]
for wheel in glob.glob(scratch + "/nvidia_cuda_nvcc_cu12-*.whl"):
    with zipfile.ZipFile(wheel) as archive, open(ptxas + ".part", "wb") as file:
        file.write(archive.read("nvidia/cuda_nvcc/bin/ptxas"))
    os.remove(wheel)
    os.chmod(ptxas + ".part", 0o755)
    os.rename(ptxas + ".part", ptxas)
PYTHON
}

# compile_to_ptx SOURCE NAME: nvcc says which commands it would run; they are run with the other __CUDA_ARCH__.
compile_to_ptx() {
  "$nvcc" "${options[@]}" -arch="compute_$lowest" -ptx --dryrun "$1" -o "$scratch/$2.ptx" 2>&1 |
    sed -n 's/^#\$ //p' | grep -vE '^[A-Z_]+=.*' >"$scratch/$2.commands.txt" || return 1
  {
    echo "CICC_PATH=$(dirname "$nvcc")/../nvvm/bin"
    sed "s/\(__CUDA_ARCH\(_LIST\)\?__\)=${lowest}0/\1=700/g" "$scratch/$2.commands.txt"
  } >"$scratch/$2.commands.sh"
  grep -q '__CUDA_ARCH__=700' "$scratch/$2.commands.sh" || {
    echo "check_sm70: this nvcc's --dryrun is of a form not known here: $scratch/$2.commands.sh" >&2
    return 1
  }
  bash -e "$scratch/$2.commands.sh"
  sed -i "s/^\.version .*/.version $ptx_version/; s/^\.target sm_$lowest.*/.target sm_70/" "$scratch/$2.ptx"
}

# The machine code's own word: the low byte of an NVIDIA cubin's ELF flags is its architecture.
check_cubin() {
  local flags kernels
  flags=$(readelf -h "$scratch/$2.cubin" 2>/dev/null | sed -n 's/.*Flags: *\(0x[0-9a-f]*\).*/\1/p')
  if [ $((${flags:-0} & 0xff)) -ne 70 ]; then
    echo "check_sm70: $1 did not become sm_70 code: ELF flags ${flags:-none}" >&2
    return 1
  fi
  kernels=$(readelf -SW "$scratch/$2.cubin" 2>/dev/null | grep -c ' \.text\.' || true)
  [ "$kernels" -gt 0 ] || { echo "check_sm70: $1 has no kernel in its sm_70 code" >&2; return 1; }
  echo "sm_70: $1: $kernels kernels, $(stat -c %s "$scratch/$2.cubin") bytes"
}

if "$nvcc" --list-gpu-code | grep -qx sm_70; then
  lowest=
else
  lowest=$("$nvcc" --list-gpu-code | sed -n 's/^sm_\([0-9]*\)$/\1/p' | sort -n | head -n 1)
  fetch_ptxas
fi
for source in "${sources[@]}"; do
  [ -f "$source" ] || { echo "check_sm70: no such source: $source" >&2; exit 1; }
  name=$(basename "$source" .cu)
  if [ -z "$lowest" ]; then
    "$nvcc" "${options[@]}" -arch=sm_70 -cubin "$source" -o "$scratch/$name.cubin"
  else
    compile_to_ptx "$source" "$name"
    "$ptxas" -arch=sm_70 "$scratch/$name.ptx" -o "$scratch/$name.cubin" || {
      echo "check_sm70: $source uses what sm_70 lacks (lines are of $scratch/$name.ptx)" >&2
      exit 1
    }
  fi
  check_cubin "$source" "$name"
done
