#!/usr/bin/env bash
# Installs from Debian what polyreme needs and is missing; does nothing when all is there.
#   scripts/install_packages.sh [--test] [--cuda] [--fuzz]
#     (none)  to build and run
#     --test  to run the test suite too
#     --fuzz  to build the fuzz targets (clang for its libFuzzer)
#     --cuda  to build the CUDA plugin and bundles too; the CUDA toolkit (nvcc) itself does not come from Debian
set -euo pipefail

packages=(
  build-essential cmake ninja-build pkg-config ca-certificates
  libgrpc++-dev protobuf-compiler-grpc libprotobuf-dev protobuf-compiler
  libabsl-dev libboost-dev libssl-dev libfmt-dev nlohmann-json3-dev
  libpcre2-dev libutf8proc-dev prometheus-cpp-dev
  openmpi-bin openssh-client curl jq
)
for argument in "$@"; do
  case "$argument" in
    --test) packages+=(libgtest-dev libgmock-dev ccache lld python3 git gnuplot-nox munge slurmctld slurmd slurm-client) ;;
    --cuda) packages+=(ccache lld python3 python3-pip patchelf zstd) ;;
    --fuzz) packages+=(clang-14 libclang-rt-14-dev lld) ;;
    *) echo "usage: $0 [--test] [--cuda] [--fuzz]" >&2; exit 2 ;;
  esac
done

missing=()
for package in "${packages[@]}"; do
  state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$state" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

echo "installing: ${missing[*]}"
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "these need root, and there is no sudo: apt-get install ${missing[*]}" >&2; exit 1; }
  as_root=(sudo)
fi
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -q
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
