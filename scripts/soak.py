#!/usr/bin/env python3
"""Serves a model under constant mixed load while its processes are killed, and compares each answer with an undisturbed one.

Greedy, seeded, several choices, streamed or whole. Each kill is verified: the process is gone (or stands), and another has taken its
place. Ends with a Markdown report, and with code 1 if any answer was lost, doubled or different, or if a kill had no effect.
"""
import argparse
import datetime
import http.client
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PATIENCE_S = 60  # for one answer's next bytes: a hang is found within 10 s
LAYOUTS = {"tp2": ["-tp", "2"], "pp2": ["-pp", "2"], "tp2pp2": ["-tp", "2", "-pp", "2"], "tp4": ["-tp", "4"]}
PROMPTS = ["def f(", "import numpy as np\n", "class Tree:\n    def __init__(self", "The quick brown fox",
           "for i in range(10):\n", "# A function that sorts\n" * 12, "one, two, three, " * 40, "x = [" + "1, " * 150]


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--kills-per-minute", type=float, default=2)
    parser.add_argument("--layout", choices=sorted(LAYOUTS), default="tp2pp2")
    parser.add_argument("--transport", choices=["auto", "shm", "tcp"], default="auto")
    parser.add_argument("--clients", type=int, default=4, help="requests at once")
    parser.add_argument("--stop-share", type=float, default=0.15, help="of the strikes, SIGSTOP instead of SIGKILL")
    parser.add_argument("--kill-coordinator", action="store_true", help="the coordinator too, one strike in five")
    parser.add_argument("--model", default=str(ROOT / "deploy/demo-model"))
    parser.add_argument("--program", default="", help="default: the newest build/*/polyreme")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "build/soak")
    parser.add_argument("--seed", type=int, default=None, help="of the choice of requests and victims; printed")
    return parser.parse_args()


def find_program(wanted):
    if wanted:
        return wanted
    built = sorted(ROOT.glob("build/*/polyreme"), key=lambda p: p.stat().st_mtime)
    if not built:
        sys.exit("soak: no build/*/polyreme: build first (scripts/test.sh), or give --program")
    return str(built[-1])


def state_of(pid):
    """As in /proc/PID/stat; None if there is no such process or it is only waited for."""
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state == "Z" else state


def wait_until(condition, patience_s):
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


class Server:
    """The program, its log with the times that are in it, and its processes."""

    LINE = re.compile(r"(\d\d):(\d\d):(\d\d)\.(\d\d\d) ([IWE]) \[([^]]*)\] (.*)")

    def __init__(self, command, log_path):
        self.lines = []  # (time of day in s, text)
        self.lock = threading.Lock()
        self.log = open(log_path, "w")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                        start_new_session=True)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        found = []

        def is_ready():
            found[:] = self.find(r"serving \S+ at http://127\.0\.0\.1:(\d+)")
            return found or self.process.poll() is not None

        wait_until(is_ready, 120)
        if not found:
            self.process.kill()
            sys.exit(f"soak: the program did not get ready; see {log_path}")
        self.port = int(found[0][1].group(1))

    def _read(self):
        for line in self.process.stdout:
            self.log.write(line)
            self.log.flush()
            match = self.LINE.match(line)
            if match:
                h, m, s, ms = (int(match.group(i)) for i in range(1, 5))
                with self.lock:
                    self.lines.append((h * 3600 + m * 60 + s + ms / 1000, match.group(7)))

    def find(self, pattern, begin=0):
        with self.lock:
            lines = self.lines[begin:]
        return [(at, match) for at, text in lines if (match := re.search(pattern, text))]

    def num_lines(self):
        with self.lock:
            return len(self.lines)

    def children(self):
        """title -> pid, of all that live: "coordinator", "worker 0", ..."""
        out = {}
        for path in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                argv = (path / "cmdline").read_bytes().split(b"\0")
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            if parent != self.process.pid or len(argv) < 2 or state_of(path.name) is None:
                continue
            if argv[1] == b"coordinator":
                out["coordinator"] = int(path.name)
            elif argv[1] == b"worker":
                out[f"worker {int(argv[argv.index(b'--rank') + 1])}"] = int(path.name)
        return out

    def is_healthy(self):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return None


def make_requests(rng, model_name):
    """Some of each kind; deterministic, so that each has one right answer."""
    requests = []
    for i, prompt in enumerate(PROMPTS):
        for kind in ({"temperature": 0}, {"temperature": 0.9, "seed": 7 + i}, {"temperature": 0.8, "seed": 11 + i, "n": 2 + i % 3}):
            body = {"model": model_name, "prompt": prompt, "max_tokens": rng.choice([20, 60, 150, 300]), "ignore_eos": True, **kind}
            requests.append({**body, "stream": rng.random() < 0.7})
    return requests


class Broken(Exception):
    pass


def ask(port, body, key=None):
    """choice -> "text|finish reason"; Broken if the answer is not whole."""
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Idempotency-Key"] = key
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        response = connection.getresponse()
        text = response.read().decode()
    except (OSError, http.client.HTTPException) as error:
        raise Broken(f"{type(error).__name__}: {error}") from error
    if response.status != 200:
        raise Broken(f"{response.status}: {text[:200]}")
    if body["stream"] and not text.rstrip().endswith("data: [DONE]"):
        raise Broken(f"the stream ended early: ...{text[-200:]}")
    events = [line[6:] for line in text.splitlines() if line.startswith("data: {")] if body["stream"] else [text]
    story, finish = {}, {}
    for event in map(json.loads, events):
        if "choices" not in event:
            raise Broken(f"an error in the stream: {event}")
        for choice in event["choices"]:
            story[choice["index"]] = story.get(choice["index"], "") + choice["text"]
            finish[choice["index"]] = choice.get("finish_reason") or finish.get(choice["index"])
    if None in finish.values() or len(finish) != body.get("n", 1):
        raise Broken(f"choices without an end: {finish}")
    return {i: f"{story[i]}|{finish[i]}" for i in story}


class Tally:
    def __init__(self):
        self.lock = threading.Lock()
        self.answers = self.choices = self.lost = self.doubled = self.differing = self.asked_again = 0
        self.examples = []

    def add(self, got, want, what):
        with self.lock:
            self.answers += 1
            self.choices += len(want)
            for i in want:
                text = got.get(i, "")
                if text == want[i]:
                    continue
                if len(text) < len(want[i]):
                    self.lost += 1
                elif len(text) > len(want[i]):
                    self.doubled += 1
                else:
                    self.differing += 1
                self.examples.append(f"{what}\n  want {want[i]!r}\n  got  {text!r}")

    def add_lost(self, what, why):
        with self.lock:
            self.lost += 1
            self.examples.append(f"{what}\n  {why}")


class Load:
    """Clients that ask one request after another until told to stop."""

    def __init__(self, port, requests, wants, clients, seed, may_break):
        self.port, self.requests, self.wants, self.may_break = port, requests, wants, may_break
        self.tally = Tally()
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self._run, args=(f"{seed}-{i}",)) for i in range(clients)]
        for thread in self.threads:
            thread.start()

    def _run(self, name):
        rng = random.Random(name)
        count = 0
        while not self.stopping.is_set():
            i = rng.randrange(len(self.requests))
            count += 1
            self._ask(i, f"{name}-{count}")

    def _ask(self, i, key):
        begin = time.time()
        what = f"request {i}, key {key}: {json.dumps(self.requests[i])[:200]}"
        while True:
            try:
                got = ask(self.port, self.requests[i], key)
            except Broken as error:
                # Only the coordinator's own end may break an answer; the key brings the client back to it.
                if self.may_break(begin) and time.time() - begin < 2 * PATIENCE_S:
                    with self.tally.lock:
                        self.tally.asked_again += 1
                    time.sleep(0.1)
                    continue
                now = datetime.datetime.now(datetime.timezone.utc)
                return self.tally.add_lost(f"{now:%H:%M:%S} UTC, asked {time.time() - begin:.1f} s before: {what}", error)
            return self.tally.add(got, self.wants[i], what)

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join()


class Strikes:
    """What was struck, when, and what the log says of it."""

    def __init__(self, server, rng, arguments):
        self.server, self.rng, self.arguments = server, rng, arguments
        self.strikes = []
        self.last_coordinator_kill = 0.0

    def may_break(self, begin):
        return self.last_coordinator_kill > begin - 30

    def strike(self):
        children = self.server.children()
        workers = sorted(title for title in children if title != "coordinator")
        title = self.rng.choice(workers) if workers else None
        kind = signal.SIGSTOP if self.rng.random() < self.arguments.stop_share else signal.SIGKILL
        if self.arguments.kill_coordinator and self.rng.random() < 0.2 and "coordinator" in children:
            title, kind = "coordinator", signal.SIGKILL
            self.last_coordinator_kill = time.time()
        if title is None:
            return
        pid, begin, line = children[title], time.time(), self.server.num_lines()
        entry = {"title": title, "pid": pid, "kind": "stop" if kind == signal.SIGSTOP else "kill", "at": begin,
                 "healthy": self.server.is_healthy()}
        entry["at"] = time.time()
        os.kill(pid, kind)
        wanted = "T" if kind == signal.SIGSTOP else None
        entry["took_effect"] = wait_until(lambda: state_of(pid) == wanted, 5)
        day = entry["at"] % 86400
        name = f"worker rank {title.split()[1]}" if title != "coordinator" else "coordinator"

        def seconds_until(pattern):
            times = [(at - day) % 86400 for at, _ in self.server.find(pattern, line)]
            times = [t for t in times if t < 43200]
            return min(times) if times else None

        replaced = rf"{name} \(pid {pid}\).*started again as pid (\d+)"
        serving = r"epoch \d+ serves, after"
        entry["came_back"] = wait_until(
            lambda: self.server.find(replaced, line) and self.server.find(serving, line) and self.server.is_healthy(), 60)
        if title != "coordinator":
            lost = rf"{name} \(pid {pid}\) hangs" if kind == signal.SIGSTOP else r"epoch \d+ is lost"
            entry["detected_s"] = seconds_until(lost)
        entry["serving_s"] = seconds_until(serving)
        successors = self.server.find(replaced, line)
        entry["replaced"] = bool(successors) and state_of(pid) is None and state_of(successors[-1][1].group(1)) is not None
        self.strikes.append(entry)
        times = ", ".join(f"{what} after {entry[key]:.2f} s" for what, key in (("detected", "detected_s"), ("serving", "serving_s"))
                          if entry.get(key) is not None)
        print(f"soak: {entry['kind']} {title} (pid {pid}): {times}", flush=True)

    def verified(self):
        return [s for s in self.strikes if s["took_effect"] and s["came_back"] and s["replaced"]]


class Usage:
    """Memory and descriptors of the processes that live through all of it."""

    def __init__(self, server):
        self.server, self.samples, self.begin = server, {}, time.time()

    def sample(self):
        for title, pid in {"agent": self.server.process.pid, **self.server.children()}.items():
            try:
                rss = int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text()).group(1)) / 1024
                fds = len(os.listdir(f"/proc/{pid}/fd"))
            except (FileNotFoundError, ProcessLookupError, PermissionError, AttributeError):
                continue
            self.samples.setdefault(title, []).append((time.time() - self.begin, pid, rss, fds))

    def rows(self):
        for title, samples in sorted(self.samples.items()):
            # A slope only of one process's life, after its first minute or fifth.
            lives = {}
            for at, pid, rss, fds in samples:
                lives.setdefault(pid, []).append((at, rss, fds))
            life = max(lives.values(), key=len)
            cut = min(60, 0.2 * (life[-1][0] - life[0][0]))
            life = [s for s in life if s[0] >= life[0][0] + cut]
            at = [s[0] for s in life]
            yield (title, len(lives), max(s[2] for s in samples), max(s[3] for s in samples), (at[-1] - at[0]) / 60,
                   slope_an_hour(at, [s[1] for s in life]), slope_an_hour(at, [s[2] for s in life]))


def slope_an_hour(x, y):
    """By least squares; said of five minutes or more."""
    if len(x) < 3 or x[-1] - x[0] < 300:
        return "–"
    mx, my = sum(x) / len(x), sum(y) / len(y)
    below = sum((a - mx) ** 2 for a in x)
    return f"{3600 * sum((a - mx) * (b - my) for a, b in zip(x, y)) / below:+.1f}"


def quantiles(values):
    values = sorted(v for v in values if v is not None)
    if not values:
        return "–"

    def at(q):
        return values[min(len(values) - 1, int(q * len(values)))]

    return f"p50 {at(0.5):.2f} s, p99 {at(0.99):.2f} s, longest {values[-1]:.2f} s ({len(values)})"


def hardware():
    text = pathlib.Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", text)
    memory = int(re.search(r"MemTotal:\s+(\d+)", pathlib.Path("/proc/meminfo").read_text()).group(1)) / 2**20
    return f"{model.group(1) if model else 'unknown CPU'}, {os.cpu_count()} cores, {memory:.0f} GiB, no GPU used"


def commit():
    out = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True)
    return out.stdout.strip() or "unknown"


def report(arguments, built_from, seed, tally, strikes, usage, loads, exit_code, minutes):
    kills = [s for s in strikes.strikes if s["kind"] == "kill" and s["title"] != "coordinator"]
    stops = [s for s in strikes.strikes if s["kind"] == "stop"]
    coordinators = [s for s in strikes.strikes if s["title"] == "coordinator"]
    command = "scripts/soak.sh " + " ".join(sys.argv[1:])
    lines = [
        "# Soak", "",
        f"- {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC, commit {built_from}, seed {seed}",
        f"- {hardware()}; load average {loads[0]:.1f} at the beginning, {loads[1]:.1f} at the end",
        f"- `{command.strip()}`", "",
        f"{minutes:.1f} minutes of {arguments.layout} ({arguments.transport}) with {arguments.clients} clients; ended with code "
        f"{exit_code}.", "",
        "| | |", "| --- | --- |",
        f"| answers (choices) compared | {tally.answers} ({tally.choices}) |",
        f"| lost / doubled / differing | {tally.lost} / {tally.doubled} / {tally.differing} |",
        f"| strikes, verified | {len(strikes.strikes)}, {len(strikes.verified())} |",
        f"| of them SIGKILL / SIGSTOP of a worker / SIGKILL of the coordinator | {len(kills)} / {len(stops)} / {len(coordinators)} |",
        f"| death to detection | {quantiles([s['detected_s'] for s in kills])} |",
        f"| death to serving | {quantiles([s['serving_s'] for s in kills])} |",
        f"| hang to verdict on the right rank | {quantiles([s['detected_s'] for s in stops])} |",
        f"| hang to serving | {quantiles([s['serving_s'] for s in stops])} |",
        f"| coordinator's death to serving | {quantiles([s['serving_s'] for s in coordinators])} |",
        f"| answers asked for again after the coordinator's death | {tally.asked_again} |", "",
        "| process | lives | RSS max MiB | fds max | longest life observed, min | RSS slope MiB/h | fd slope 1/h |",
        "| --- | --- | --- | --- | --- | --- | --- |"]
    for title, lives, rss, fds, life, rss_slope, fd_slope in usage.rows():
        lines.append(f"| {title} | {lives} | {rss:.0f} | {fds} | {life:.1f} | {rss_slope} | {fd_slope} |")
    return "\n".join(lines) + "\n"


def main():
    arguments = parse_arguments()
    seed = arguments.seed if arguments.seed is not None else random.randrange(2**31)
    rng = random.Random(seed)
    print(f"soak: --seed {seed}", flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    command = [find_program(arguments.program), "serve", arguments.model, *LAYOUTS[arguments.layout], "--port", "0",
               "--transport", arguments.transport, "--max-restarts", "1000", "--restart-window", "60"]
    loads = [os.getloadavg()[0]]
    built_from = commit()
    server = Server(command, arguments.out / "server.log")
    requests = make_requests(rng, pathlib.Path(arguments.model).name)
    wants = [ask(server.port, body) for body in requests]
    if wants != [ask(server.port, {**body, "stream": not body["stream"]}) for body in requests]:
        sys.exit("soak: two undisturbed runs differ; nothing can be compared with them")
    strikes = Strikes(server, rng, arguments)
    load = Load(server.port, requests, wants, arguments.clients, seed, strikes.may_break)
    usage = Usage(server)
    begin = time.monotonic()
    end = begin + 60 * arguments.minutes
    next_strike = begin + 2
    while time.monotonic() < end and server.process.poll() is None:
        usage.sample()
        if arguments.kills_per_minute > 0 and time.monotonic() >= next_strike and next_strike < end:
            strikes.strike()
            next_strike += 60 / arguments.kills_per_minute * rng.uniform(0.7, 1.3)
            if rng.random() < 0.1:
                # Twice in a row, but not without a token between: who is there then is taken for the cause, and ended.
                next_strike = time.monotonic() + 3
        time.sleep(1)
    load.stop()
    minutes = (time.monotonic() - begin) / 60
    exit_code = server.stop()
    loads.append(os.getloadavg()[0])
    tally = load.tally
    text = report(arguments, built_from, seed, tally, strikes, usage, loads, exit_code, minutes)
    (arguments.out / "soak.md").write_text(text)
    (arguments.out / "strikes.json").write_text(json.dumps(strikes.strikes, indent=1))
    print(text)
    for example in tally.examples[:5]:
        print(f"soak: {example}")
    unverified = [s for s in strikes.strikes if s not in strikes.verified()]
    for entry in unverified:
        print(f"soak: a strike had no effect or was not recovered from: {entry}")
    bad = tally.lost + tally.doubled + tally.differing + len(unverified)
    idle = tally.answers == 0 or (arguments.kills_per_minute > 0 and not strikes.strikes)
    if idle:
        print("soak: nothing was asked or nothing was struck: that proves nothing")
    sys.exit(1 if bad or idle or exit_code != 0 else 0)


if __name__ == "__main__":
    main()
