#!/usr/bin/env bash
# Serves the demo model under constant mixed load while ranks are killed, and reports what clients noticed: nothing.
#   scripts/soak.sh [--minutes 60] [--kills-per-minute 2] [--layout tp2pp2] [--out DIR] [more: --help]
exec python3 "$(dirname "$0")/soak.py" "$@"
