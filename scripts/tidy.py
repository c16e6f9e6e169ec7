#!/usr/bin/env python3
"""Rules that are run, not remembered: layering, sizes, dead files, dead tests, words that do not belong.

Usage: scripts/tidy.py [ROOT]      prints each breach as FILE:LINE: message; exit code 1 if there is one.
"""
import pathlib
import re
import subprocess
import sys

CODE = {".h", ".cc", ".cu", ".cuh"}
MAX_LINES = 600
MAX_COLUMNS = 140   # clang-format keeps code at 100; comments and long strings may run on a little
MAX_FUNCTION_LINES = 70
# May hold third-party headers that nobody else may: folder or file prefix by header prefix.
FENCED = {
    "nlohmann/": ["parallel/base/json.cc"],
    "boost/": ["coordinator/api/", "parallel/comm/tcp_transport.cc", "deploy/bench/", "tests/"],
    "grpcpp/": ["worker/run/", "coordinator/engine/cluster", "coordinator/api/", "deploy/cli/", "tests/"],
    "proto/": ["parallel/wire/", "worker/run/", "coordinator/engine/cluster", "coordinator/api/", "deploy/cli/",
               "tests/"],
    "prometheus/": ["coordinator/engine/metrics.cc"],
}
BANNED = [
    (re.compile(r"\b(TODO|FIXME|XXX)\b"), "unfinished by its own word"),
    (re.compile(r"\.\./shared"), "the project must stand alone"),
    (re.compile(r"\bstd::(exit|abort|quick_exit|terminate)\b"), "errors are values"),
    (re.compile(r"\bthread_local\b"), "no ambient state"),
    (re.compile(r"\busing namespace\b"), "say whose name it is"),
    (re.compile(r"\b(std::this_thread::sleep|usleep|nanosleep)\b"), "wait for the thing itself, with a deadline"),
    (re.compile(r"\bsystem_clock::now|\babsl::Now\(\)"), "time comes from parallel/base/clock.h"),
]
# Where a banned thing is the point of the file.
ALLOWED = {
    "parallel/base/status.cc": ["errors are values"],
    "parallel/base/clock.cc": ["time comes from parallel/base/clock.h"],
    # The handler of a failed allocation is told nothing but by the thread that it runs on.
    "parallel/base/out_of_memory.cc": ["no ambient state"],
    # gRPC's deadlines are wall-clock times.
    "worker/run/cluster_client.cc": ["time comes from parallel/base/clock.h"],
    "coordinator/engine/cluster.cc": ["time comes from parallel/base/clock.h"],
}


def tracked_files(root):
    out = subprocess.run(["git", "-C", root, "ls-files", "--cached", "--others", "--exclude-standard"],
                         capture_output=True, text=True)
    if out.returncode == 0:
        return [f for f in out.stdout.splitlines() if (root / f).is_file()]
    return [str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()]


def read_layers(root):
    layers = {}
    for line in (root / "docs/layers.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            folder, _, allowed = line.partition(":")
            layers[folder.strip()] = set(allowed.split())
    order = list(layers)
    for folder, allowed in layers.items():
        for other in allowed - {"*"}:
            if other not in layers or order.index(other) >= order.index(folder):
                sys.exit(f"docs/layers.txt: {folder} may not name {other}: it is not above it")
    return layers


def layer_of(path, layers):
    """The longest row of the table that holds this path, or None."""
    return max((row for row in layers if path.startswith(row + "/")), key=len, default=None)


def check_includes(name, lines, layers, complain):
    row = layer_of(name, layers)
    for number, line in enumerate(lines, 1):
        match = re.match(r'\s*#\s*include\s*[<"]([^>"]+)[>"]', line)
        if not match:
            continue
        target = match.group(1)
        for prefix, allowed in FENCED.items():
            if target.startswith(prefix) and not any(name.startswith(a) for a in allowed):
                complain(name, number, f"{target} may be included only by {', '.join(allowed)}")
        other = layer_of(target, layers)
        if row is None or other is None or other == row or layers[row] == {"*"}:
            continue
        if other not in layers[row] and not row.startswith(other + "/"):
            complain(name, number, f"{row} may not include {other} (docs/layers.txt)")


def check_functions(name, lines, complain):
    """Length of top-level functions: from a line at column 0 that opens a body to the closing brace at column 0."""
    start = None
    for number, line in enumerate(lines, 1):
        if start is None and re.match(r"[A-Za-z_].*\)[^;]*\{\s*$", line) and not line.startswith(("namespace", "struct", "class")):
            start = number
        elif start is not None and line.startswith("}"):
            if number - start + 1 > MAX_FUNCTION_LINES:
                complain(name, start, f"function of {number - start + 1} lines, expected at most {MAX_FUNCTION_LINES}")
            start = None


def check_lines(name, lines, complain):
    if len(lines) > MAX_LINES:
        complain(name, len(lines), f"{len(lines)} lines, expected at most {MAX_LINES}")
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_COLUMNS:
            complain(name, number, f"{len(line)} columns, expected at most {MAX_COLUMNS}")
        for pattern, why in BANNED:
            if pattern.search(line) and why not in ALLOWED.get(name, []):
                complain(name, number, f"{pattern.search(line).group(0)}: {why}")


def check_listed(root, files, complain):
    """Every source is in some CMake file: a test that is not built is a lie in the tree."""
    listed = "".join((root / f).read_text() for f in files if f.endswith(("CMakeLists.txt", ".cmake")))
    for name in files:
        path = pathlib.Path(name)
        if path.suffix in {".cc", ".cu"} and not re.search(rf"(?<![\w]){re.escape(path.name)}\b", listed):
            complain(name, 1, "is in no CMakeLists.txt")


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent).resolve()
    layers = read_layers(root)
    files = tracked_files(root)
    breaches = []

    def complain(name, number, message):
        breaches.append(f"{name}:{number}: {message}")

    for name in files:
        suffix = pathlib.Path(name).suffix
        if suffix in CODE or suffix in {".py", ".sh"}:
            lines = (root / name).read_text().splitlines()
            if name != "scripts/tidy.py":
                check_lines(name, lines, complain)
            if suffix in CODE:
                check_includes(name, lines, layers, complain)
                check_functions(name, lines, complain)
                if suffix == ".h" and not any(line == "#pragma once" for line in lines):
                    complain(name, 1, "a header starts with #pragma once")
    check_listed(root, files, complain)
    print("\n".join(breaches) if breaches else f"tidy: {len(files)} files, nothing to say")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
