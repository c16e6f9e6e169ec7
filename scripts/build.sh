#!/usr/bin/env bash
# Builds the program alone, Release, at build/release/polyreme.
set -euo pipefail
cd "$(dirname "$0")/.."
cmake -S . -B build/release -G Ninja -DCMAKE_BUILD_TYPE=Release -DPOLYREME_TESTS=OFF >build/cmake.log 2>&1 || {
  cat build/cmake.log >&2
  exit 1
}
cmake --build build/release --target polyreme
