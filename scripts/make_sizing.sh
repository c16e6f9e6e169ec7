#!/usr/bin/env bash
# Writes docs/sizing.md, docs/sizing-published.md and the pictures beside them: the output of `polyreme plan`.
#   scripts/make_sizing.sh [POLYREME]          (default build/cpu-release/polyreme; pictures need gnuplot)
#   scripts/make_sizing.sh --check POLYREME    exits 1 if the pages are not what the program prints
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
check=
if [ "${1:-}" = --check ]; then check=1; shift; fi
polyreme=$(realpath "${1:-$root/build/cpu-release/polyreme}")
cd "$root"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
model=iquest-coder-v1-40b

# One command and what it prints, in a block; a launch that does not fit is an answer too.
block() {
  printf '```\n$ polyreme %s\n' "$*"
  local code=0
  "$polyreme" "$@" || code=$?
  if [ "$code" -ne 0 ] && [ "$code" -ne 3 ]; then exit "$code"; fi
  if [ "$code" -eq 3 ]; then printf '(exit code 3)\n'; fi
  printf '```\n'
}

{
  cat <<TEXT
# Sizing: IQuest-Coder-V1-40B on five machines

Output of \`polyreme plan\`, written by \`scripts/make_sizing.sh\`; a test keeps it so. Memory is worked out by the code that workers
allocate by (\`decisions/0017-one-formula.md\`). Speeds are "at most" by the rooflines; "expected" is a roofline times the share measured
on a GPU of the family (\`benchmarks/h200.md\`), "predicted" the same share where no GPU of the family was measured. Published tables
beside the arithmetic: \`sizing-published.md\`.

## 2 x A100-80G, TP2

TEXT
  block plan "$model" --gpu a100-80g-sxm4:2 -tp 2
  printf '\nThe same pair in other layouts and widths of weights:\n\n'
  block plan "$model" --gpu a100-80g-sxm4:2 -tp 2 --sweep
  printf '\n![memory](sizing/%s-2xa100-80g-sxm4-memory.svg)\n![decode](sizing/%s-2xa100-80g-sxm4-decode.svg)\n' "$model" "$model"
  printf '\n## 4 x V100-32G, PP4\n\nA context of 128K does not fit:\n\n'
  block plan "$model" --gpu v100-32g-sxm2:4 -pp 4
  printf '\nOne of 64K does:\n\n'
  block plan "$model" --gpu v100-32g-sxm2:4 -pp 4 --context 65536 --max-num-seqs 64
  printf '\n## One H200\n\n'
  block plan "$model" --gpu h200
  printf '\n## Two H200, TP2\n\n'
  block plan "$model" --gpu h200:2 -tp 2
  printf '\n## One RTX 4090\n\n'
  block plan "$model" --gpu rtx-4090
  printf '\nThe 7B of the family:\n\n'
  block plan iquest-coder-v1-7b --gpu rtx-4090 --context 32768 --max-num-seqs 16 --max-num-batched-tokens 2048
  printf '\n## Which GPUs for which role\n\nThe budget is eight GPUs; with prices in a --gpu-file it would be per hour.\n'
  for role in ide api farm scan; do
    printf '\n'
    block plan "$model" --recommend --role "$role" --budget 8
  done
} > "$work/sizing.md"

{
  cat <<TEXT
# Published tables of this model beside the arithmetic

Written by \`scripts/make_sizing.sh\` from \`sizing-published.json\`: each figure, what arithmetic allows on the GPU that its maker
describes, whether it is possible, and why not. Nothing is taken off the maker's figures: a run that reached them would need every byte
and every multiplication at full rate. "No" is so for either of two reasons: the figure itself lies beyond the bound, or the run it is
of cannot be held by the GPU at all.

TEXT
  "$polyreme" plan "$model" --claims docs/sizing-published.json
} > "$work/sizing-published.md"

if [ -n "$check" ]; then
  diff -u docs/sizing.md "$work/sizing.md" && diff -u docs/sizing-published.md "$work/sizing-published.md" && exit 0
  echo "docs/sizing*.md are not what $polyreme prints: run scripts/make_sizing.sh" >&2
  exit 1
fi
cp "$work/sizing.md" "$work/sizing-published.md" docs/
if command -v gnuplot >/dev/null; then
  "$polyreme" plan "$model" --gpu a100-80g-sxm4:2 -tp 2 --sweep --output "$work/plots" >/dev/null
  mkdir -p docs/sizing
  cp "$work"/plots/*.svg docs/sizing/
else
  echo "no gnuplot here: the pictures in docs/sizing stay as they are" >&2
fi
