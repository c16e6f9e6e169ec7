#!/usr/bin/env bash
# Installs from Debian what polyreme needs and is missing; does nothing when all is there.
#   scripts/install_packages.sh         to build and run
#   scripts/install_packages.sh --test  to run the test suite too
set -euo pipefail

packages=(
  build-essential cmake ninja-build pkg-config ca-certificates
  libgrpc++-dev protobuf-compiler-grpc libprotobuf-dev protobuf-compiler
  libabsl-dev libboost-dev libssl-dev libfmt-dev nlohmann-json3-dev
  libpcre2-dev libutf8proc-dev prometheus-cpp-dev
  openmpi-bin openssh-client curl jq
)
case "${1:-}" in
  "") ;;
  --test) packages+=(libgtest-dev libgmock-dev ccache lld python3 git munge slurmctld slurmd slurm-client) ;;
  *) echo "usage: $0 [--test]" >&2; exit 2 ;;
esac

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
