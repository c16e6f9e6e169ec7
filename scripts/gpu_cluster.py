"""Clusters for check_gpu.py: started, watched, asked over HTTP and ended, with no process left behind.

Only Python's own library. Every wait is bounded.
"""

import collections
import contextlib
import http.client
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import threading
import time

from make_dummy_model import make_dummy_model

MARK = "POLYREME_CHECK_GPU"  # in the environment of all that is started here, so that all of it is found again


class Failed(Exception):
    """A check cannot go on; its text says why."""


class Report:
    def __init__(self):
        self.counts = collections.Counter()
        self.failures = []

    def say(self, verdict, check, text):
        self.counts[verdict] += 1
        line = f"{verdict:<5}{check:<9} {text}"
        if verdict == "FAIL":
            self.failures.append(line)
        print(line, flush=True)

    def judge(self, passed, check, text):
        self.say("ok" if passed else "FAIL", check, text)
        return passed

    def info(self, check, text):
        self.say("info", check, text)

    def skip(self, check, why):
        self.say("skip", check, why)


# ---- processes

def wait_until(condition, seconds, step=0.01):
    """Whether `condition` came true in time; looks every `step` seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(step)
    return True


def is_alive(pid):
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def marked(mark):
    """Pids of the living processes with this mark in their environment, wherever their parents have gone."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                environment = pathlib.Path(f"/proc/{entry}/environ").read_bytes()
            except OSError:
                continue
            if wanted in environment.split(b"\0") and is_alive(int(entry)):
                found.append(int(entry))
    return found


def command_line(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


class Job:
    """One started command with all it says, in a session of its own; `end` leaves none of its processes behind."""

    started = 0

    def __init__(self, line, environment=None, scratch=None):
        Job.started += 1
        self.line = [str(word) for word in line]
        self.mark = f"{os.getpid()}-{Job.started}"
        self.log = pathlib.Path(scratch) / f"job-{Job.started}.txt"
        everything = dict(os.environ, **(environment or {}))
        everything[MARK] = self.mark
        self.start_time = time.monotonic()
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(self.line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=everything,
                                            start_new_session=True)
        self.port = 0

    def output(self):
        return self.log.read_text(errors="replace")

    def exit_code(self, seconds=0.0):
        """The exit code (128 + signal), or None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.process.wait(max(seconds, 0.001))
            return code if code >= 0 else 128 - code
        return None

    def wait_ready(self, seconds):
        """Sets the port; raises with the program's last words if it ended or did not get ready."""
        def ready():
            return re.search(r"at http://[^:\s]+:(\d+)", self.output())
        wait_until(lambda: ready() or self.process.poll() is not None, seconds, 0.02)
        found = ready()
        if not found:
            code = self.exit_code()
            how = f"exit code {code}" if code is not None else f"not ready after {seconds} s"
            raise Failed(f"{how}: {' '.join(self.line)}\n{last_lines(self.output(), 8)}")
        self.port = int(found.group(1))
        self.ready_seconds = time.monotonic() - self.start_time
        return self

    def workers(self):
        """{rank: pid}"""
        found = {}
        for pid in marked(self.mark):
            rank = re.search(r"polyreme worker .*--rank (\d+)", command_line(pid))
            if rank:
                found[int(rank.group(1))] = pid
        return found

    def stop(self, seconds=30):
        """Asks it to end as a user would; its exit code, or None if it had to be killed."""
        if self.process.poll() is None:
            under_mpirun = "mpirun" in self.line[0]
            self.process.send_signal(signal.SIGUSR2 if under_mpirun else signal.SIGTERM)
        code = self.exit_code(seconds)
        self.end()
        return code

    def end(self):
        left = []
        for wait in (0, 5):
            left = marked(self.mark)
            if self.process.poll() is None and self.process.pid not in left:
                left.append(self.process.pid)
            for pid in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            if not left or wait_until(lambda: not any(map(is_alive, left)), wait or 2):
                break
        self.exit_code(5)


def last_lines(text, count):
    return "\n".join("     | " + line[:240] for line in text.strip().splitlines()[-count:])


# ---- the cluster's HTTP face

def post(port, path, body, seconds):
    """(status, parsed answer)"""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def get(port, path, seconds=10):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    try:
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def complete(port, prompt, max_tokens, seconds=120, **more):
    """The choices of a completion; prompts and tokens are ids, and every token counts (no end of text)."""
    body = dict({"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True,
                 "return_token_ids": True, "return_tokens_as_token_ids": True}, **more)
    status, answer = post(port, "/v1/completions", body, seconds)
    if status != 200:
        raise Failed(f"status {status}: {json.dumps(answer)[:300]}")
    return answer["choices"]


class Stream:
    """A streamed completion, read by a thread of its own."""

    def __init__(self, port, body, seconds):
        self.tokens = 0
        self.ids = []
        self.first = None  # when the first token came
        self.error = ""
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._read, args=(port, body, seconds), daemon=True)
        self.thread.start()

    def _read(self, port, body, seconds):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
            connection.request("POST", "/v1/completions", json.dumps(dict(body, stream=True)),
                               {"Content-Type": "application/json"})
            for raw in connection.getresponse():
                text = raw.decode(errors="replace").strip()
                if not text.startswith("data: {"):
                    continue
                event = json.loads(text[6:])
                if "error" in event:
                    self.error = event["error"].get("message", text)
                elif event["choices"] and event["choices"][0].get("token_ids"):
                    self.first = self.first or time.monotonic()
                    self.ids += event["choices"][0]["token_ids"]
                    self.tokens = len(self.ids)
        except (OSError, ValueError, http.client.HTTPException) as failure:
            self.error = self.error or f"connection: {failure!r}"
        finally:
            self.ended.set()


# ---- what all checks share

class Bench:
    def __init__(self, options, report, scratch):
        self.options, self.report, self.scratch = options, report, pathlib.Path(scratch)
        self.gpus = options.gpus
        self.cuda = options.device == "cuda"
        self.dtypes = ["float32", "bfloat16"] if self.cuda else ["float32"]  # a CPU has but one
        self.jobs = []

    def start(self, line, environment=None):
        home = {"XDG_CACHE_HOME": str(self.scratch / "cache")}
        job = Job(line, dict(home, **(environment or {})), self.scratch)
        self.jobs.append(job)
        return job

    def serve_line(self, model, flags=()):
        return [self.options.program, "serve", model, "--port", "0", "--device", self.options.device, *flags]

    @contextlib.contextmanager
    def serving(self, model, flags=(), ranks=0, environment=None):
        """A ready cluster; ranks > 0: under mpirun with as many. Ended when the block is left."""
        job = self.start([*(mpirun(ranks) if ranks else []), *self.serve_line(model, flags)], environment)
        try:
            yield job.wait_ready(self.options.start_limit)
            code = job.stop()
            if code != 0:
                self.report.say("FAIL", "stop", f"exit code {code} when asked to end: {last_lines(job.output(), 2)}")
        finally:
            job.end()

    def layouts(self):
        """(name, ranks, flags) of each layout that this machine can hold."""
        found = [("tp1pp1", 1, ["-tp", "1"])]
        if self.gpus >= 2:
            found += [("tp2pp1", 2, ["-tp", "2"]), ("tp1pp2", 2, ["-pp", "2"])]
        return found

    def with_tokenizer(self, model):
        """A folder of `model`'s config.json with the demo model's tokenizer: made up weights need no other file."""
        folder = self.scratch / f"{pathlib.Path(model).name}-dummy"
        if not folder.exists():
            make_dummy_model(model, self.options.model_demo, folder)
        return folder

    def copy_tokenizer(self, folder):
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            source = pathlib.Path(self.options.model_demo) / name
            if source.exists() and not (folder / name).exists():
                shutil.copy(source, folder)

    def models(self):
        """(name, folder, flags, vocabulary) of the demo model and, if one was given, the made-up one."""
        found = [("demo", self.options.model_demo, [], vocabulary(self.options.model_demo))]
        if self.options.model:
            folder = self.with_tokenizer(self.options.model)
            found.append((pathlib.Path(self.options.model).name, folder,
                          ["--load-format", "dummy", "--max-model-len", "8192"], vocabulary(folder)))
        return found

    def gpu_mib(self):
        """MiB taken on all GPUs together; None without nvidia-smi."""
        try:
            text = subprocess.run(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"], timeout=20,
                                  capture_output=True, text=True, check=True).stdout
            return sum(int(line) for line in text.split())
        except (OSError, ValueError, subprocess.SubprocessError):
            return None

    def process_mib(self, job):
        """MiB that the job's processes hold, as compute-apps tells; None where pids of a container hide them."""
        try:
            text = subprocess.run(["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"],
                                  timeout=20, capture_output=True, text=True, check=True).stdout
            ours = set(marked(job.mark))
            held = [int(row.split(",")[1]) for row in text.splitlines() if int(row.split(",")[0]) in ours]
            return sum(held) if held else None
        except (OSError, ValueError, IndexError, subprocess.SubprocessError):
            return None


def mpirun(ranks):
    line = ["mpirun", "-np", str(ranks), "--oversubscribe", "--bind-to", "none"]
    return line + (["--allow-run-as-root"] if os.geteuid() == 0 else [])


def read_json(path):
    return json.loads(pathlib.Path(path).read_text())


def vocabulary(model):
    return read_json(pathlib.Path(model) / "config.json")["vocab_size"]


def random_prompts(count, vocabulary_size, lengths, seed):
    draw = random.Random(seed)
    return [[draw.randrange(100, vocabulary_size - 2000) for _ in range(draw.randrange(*lengths))] for _ in range(count)]


def first_difference(one, other):
    """Where two lists part; None if they are the same."""
    for i, (a, b) in enumerate(zip(one, other)):
        if a != b:
            return i
    return None if len(one) == len(other) else min(len(one), len(other))
