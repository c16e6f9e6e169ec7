#!/usr/bin/env python3
"""Checks the real program end to end on one or two GPUs: one line per check (verdict, what, figure), then a summary.

    python3 scripts/check_gpu.py --program FILE --model-demo DIR [--model DIR] [--model-full DIR] [--only a,b] [--gpus N]

    golden    the demo model's recorded completions and chats, over HTTP, in float32 and bfloat16
    layouts   tp1pp1, tp2pp1 and tp1pp2 under mpirun draw the same tokens, greedy and seeded
    company   how many tokens of a request differ when it runs among 63 others (told, not judged)
    kill      a worker killed in mid-stream, none to be restarted: the other goes within 2 s, the job ends named, and starts again
    recover   a worker killed or stopped in mid-stream: the other gives up within 2 s, the stream goes on, and is the same
    memory    predicted and measured bytes of each rank, 7B, 14B and 40B shapes, every layout: within 2 %
    load      a saved checkpoint reaches the GPU at a share of the measured upload rate
    full      the longest prompt, 256 sequences and n = 16 at once, and no byte more on the GPU afterwards
    refusals  what cannot run says so in one sentence
    restart   seconds from exec to ready to the first token, with nothing measured before and again

A line starts with ok, FAIL, info (told, not judged) or skip (with the reason). Exits 1 if any says FAIL.
Needs nothing but Python's own library, and mpirun for layouts and one of the refusals.
"""

import argparse
import collections
import concurrent.futures
import http.client
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from gpu_cluster import (Bench, Failed, Report, Stream, command_line, complete, first_difference, get, is_alive, last_lines, marked,
                         mpirun, post, random_prompts, read_json, vocabulary, wait_until)

F32_MARGIN = 1e-3            # two sums in another order may swap logits this near to each other
BF16_MARGIN = 0.5            # more than bfloat16's rounding explains
GROWTH_MIB = 32              # what a driver may take by itself, for modules that load when first used
CHECKS = ["golden", "layouts", "company", "kill", "recover", "memory", "load", "full", "refusals", "restart"]


# ---- golden

def check_golden(bench):
    demo = pathlib.Path(bench.options.model_demo)
    completions = read_json(demo / "golden_greedy_fp32.json")
    chats = read_json(demo / "golden_chat_fp32.json")
    for dtype in bench.dtypes:
        with bench.serving(demo, ["--dtype", dtype]) as job:
            got = [complete(job.port, c["prompt_ids"], len(c["completion_ids"]))[0]["token_ids"] for c in completions]
            judge_golden(bench.report, dtype, "completions", completions, got)
            got = []
            for chat in chats:
                body = {"messages": chat["messages"], "max_tokens": len(chat["completion_ids"]), "temperature": 0,
                        "ignore_eos": True, "return_token_ids": True}
                status, answer = post(job.port, "/v1/chat/completions", body, 120)
                if status != 200:
                    raise Failed(f"chat: status {status}: {answer}")
                if answer.get("prompt_token_ids") != chat["prompt_ids"]:
                    bench.report.say("FAIL", "golden", f"chat prompt became other tokens: {chat['messages'][0]['content'][:60]}")
                got.append(answer["choices"][0]["token_ids"])
            judge_golden(bench.report, dtype, "chats", chats, got)


def judge_golden(report, dtype, what, cases, got):
    limit = F32_MARGIN if dtype == "float32" else BF16_MARGIN
    equal, parted = 0, []
    for number, (case, tokens) in enumerate(zip(cases, got)):
        at = first_difference(tokens, case["completion_ids"])
        if at is None:
            equal += 1
        else:
            margin = case["margins"][at] if at < len(case["margins"]) else float("inf")
            parted.append((margin, f"#{number} parts at {at} of {len(case['completion_ids'])}, margin {margin:.2g}"))
    text = f"{dtype} {what}: {equal} of {len(cases)} equal" + "".join(f"; {said}" for _, said in parted)
    report.judge(all(margin < limit for margin, _ in parted), "golden", text)


# ---- layouts

def check_layouts(bench):
    if not shutil.which("mpirun"):
        bench.report.skip("layouts", "no mpirun here")
        return
    for name, folder, flags, words in bench.models():
        if name == "demo":
            prompts = [c["prompt_ids"] for c in read_json(pathlib.Path(folder) / "golden_greedy_fp32.json")[:8]]
        else:
            prompts = random_prompts(8, words, (16, 600), seed=4)
        for dtype in bench.dtypes:
            results = {}
            layouts = bench.layouts()
            if len(layouts) == 1:
                layouts = layouts + [("tp1pp1 again", 1, ["-tp", "1"])]
            for layout, ranks, more in layouts:
                with bench.serving(folder, [*flags, *more, "--dtype", dtype], ranks) as job:
                    results[layout] = {mode: complete(job.port, prompts, 128, logprobs=2, **sampling) for mode, sampling in
                                       [("greedy", {}), ("seeded", {"temperature": 0.8, "seed": 1234})]}
            for layout, _, _ in layouts[1:]:
                for mode in ("greedy", "seeded"):
                    compare_layouts(bench.report, f"{name} {dtype} {mode} {layout} against tp1pp1", dtype, mode,
                                    results["tp1pp1"][mode], results[layout][mode])


def best_two(choice, at):
    """How far the best token's log-probability is from the second's."""
    best = sorted(choice["logprobs"]["top_logprobs"][at].values(), reverse=True)
    return best[0] - best[1] if len(best) > 1 else float("inf")


def compare_layouts(report, what, dtype, mode, ours, theirs):
    equal, told, wide, drift = 0, [], 0, 0.0
    for number, (one, other) in enumerate(zip(ours, theirs)):
        at = first_difference(one["token_ids"], other["token_ids"])
        same = len(one["token_ids"]) if at is None else at
        one_scores, other_scores = one["logprobs"]["token_logprobs"], other["logprobs"]["token_logprobs"]
        drift = max([drift] + [abs(a - b) for a, b in zip(one_scores[:same], other_scores[:same])])
        if at is None:
            equal += 1
            continue
        margin = best_two(one, at) if at < len(one["token_ids"]) else float("inf")
        wide += margin > F32_MARGIN
        told.append(f"#{number} at {at} (margin {margin:.2g})")
    text = f"{what}: {equal} of {len(ours)} equal, log-probabilities before within {drift:.1g}"
    text += "; part: " + ", ".join(told) if told else ""
    if dtype != "float32":
        report.info("layouts", text)
    elif mode == "greedy":
        report.judge(wide == 0 and drift < 1e-2, "layouts", text)
    else:
        # A draw may fall between two tokens whatever their margin; in float32 hardly ever.
        report.judge(len(told) <= 1 and drift < 1e-2, "layouts", text)


# ---- company

def check_company(bench):
    for name, folder, flags, words in bench.models():
        prompts = random_prompts(64, words, (16, 200), seed=5)
        if name == "demo":
            prompts[:8] = [c["prompt_ids"] for c in read_json(pathlib.Path(folder) / "golden_greedy_fp32.json")[:8]]
        length = 256 if bench.cuda else 64
        with bench.serving(folder, [*flags, "--dtype", bench.dtypes[-1]]) as job:
            alone = [complete(job.port, prompt, length, logprobs=2)[0] for prompt in prompts[:8]]
            with concurrent.futures.ThreadPoolExecutor(64) as pool:
                others = [pool.submit(complete, job.port, prompt, length, 300) for prompt in prompts[8:]]
                among = [pool.submit(complete, job.port, prompt, length, 300, logprobs=2) for prompt in prompts[:8]]
                together = [future.result()[0] for future in among]
                for future in others:
                    future.result()
        told, differing = [], 0
        for number, (one, other) in enumerate(zip(alone, together)):
            count = sum(a != b for a, b in zip(one["token_ids"], other["token_ids"]))
            differing += count
            at = first_difference(one["token_ids"], other["token_ids"])
            if at is not None:
                told.append(f"#{number}: {count}, from {at} (margin {best_two(one, at):.2g})")
        same_length = all(len(c["token_ids"]) == length for c in alone + together)
        text = f"{name} {bench.dtypes[-1]}: {differing} of {8 * length} tokens differ among 63 others" + "".join(f"; {t}" for t in told)
        bench.report.say("info" if same_length else "FAIL", "company", text)


# ---- kill

def check_kill(bench):
    if bench.gpus < 2:
        bench.report.skip("kill", "needs two GPUs")
        return
    for layout, flags, victim in (("tp2", ["-tp", "2"], 1), ("pp2", ["-pp", "2"], 0)):
        before = bench.gpu_mib()
        job = bench.start(bench.serve_line(bench.options.model_demo, [*flags, "--max-restarts", "0"]))
        try:
            kill_worker(bench, job.wait_ready(bench.options.start_limit), layout, victim)
        finally:
            job.end()
        if bench.cuda and before is not None:
            freed = wait_until(lambda: (bench.gpu_mib() or 0) <= before + 64, 10, 0.2)
            bench.report.judge(freed, "kill", f"{layout}: GPU memory {before} MiB before, {bench.gpu_mib()} MiB after")
        with bench.serving(bench.options.model_demo, flags) as again:
            tokens = complete(again.port, [5, 6, 7], 8)[0]["token_ids"]
            bench.report.judge(len(tokens) == 8, "kill", f"{layout}: the same line serves again, ready in {again.ready_seconds:.1f} s")


def kill_worker(bench, job, layout, victim):
    report, workers, everyone = bench.report, job.workers(), marked(job.mark)
    if sorted(workers) != [0, 1]:
        raise Failed(f"{layout}: expected workers of rank 0 and 1, found {workers}")
    stream = Stream(job.port, {"prompt": [5, 6, 7], "max_tokens": 3500, "temperature": 0, "ignore_eos": True,
                               "return_token_ids": True}, 60)
    if not wait_until(lambda: stream.tokens >= 10 or stream.ended.is_set(), 30) or stream.ended.is_set():
        raise Failed(f"{layout}: no long stream to break: {stream.tokens} tokens, {stream.error}")
    killed = time.monotonic()
    os.kill(workers[victim], signal.SIGKILL)
    gone = wait_until(lambda: not is_alive(workers[1 - victim]), 20, 0.005)
    took = time.monotonic() - killed
    report.judge(gone and took <= 2, "kill", f"{layout}: after rank {victim} rank {1 - victim} was gone in {took:.2f} s (limit 2)")
    code = job.exit_code(30)
    took = time.monotonic() - killed
    report.judge(code not in (None, 0), "kill", f"{layout}: the job ended in {took:.2f} s, exit code {code}")
    named = [text for text in job.output().splitlines() if f"rank {victim}" in text and f"pid {workers[victim]}" in text]
    report.judge(bool(named), "kill", f"{layout}: it said: {(named or [last_lines(job.output(), 3)])[-1]}")
    told = stream.ended.wait(10)
    report.judge(told and bool(stream.error), "kill", f"{layout}: the client was told after {stream.tokens} tokens: "
                 f"{stream.error or 'nothing'}")
    wait_until(lambda: not any(map(is_alive, everyone)), 5)
    left = [f"{pid} {command_line(pid)[:60]}" for pid in marked(job.mark)]
    report.judge(not left, "kill", f"{layout}: processes left: {', '.join(left) or 'none'}")


# ---- recover

LONG = {"prompt": [5, 6, 7], "max_tokens": 3500, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
HANG_LIMIT = 10  # seconds until a rank that stands still is named


def check_recover(bench):
    blows = [(1, signal.SIGKILL), (0, signal.SIGKILL), (1, signal.SIGSTOP)]
    layouts = [("tp2", ["-tp", "2"], blows), ("pp2", ["-pp", "2"], blows)]
    if bench.gpus < 2:
        bench.report.skip("recover", "tp2 and pp2 need two GPUs: one rank alone")
        layouts = [("tp1", [], [(0, signal.SIGKILL), (0, signal.SIGSTOP)])]
    for layout, flags, blows in layouts:
        with bench.serving(bench.options.model_demo, [*flags, "--dtype", "float32", "--max-restarts", "10"]) as job:
            undisturbed = complete(job.port, LONG["prompt"], LONG["max_tokens"], logprobs=2)[0]
            bench.report.info("recover", f"{layout}: ready in {job.ready_seconds:.1f} s; GPU memory {bench.gpu_mib()} MiB")
            for epoch, (victim, how) in enumerate(blows, 1):
                recover_from(bench, job, f"{layout}, {how.name} of rank {victim}", victim, how, epoch, undisturbed)
            bench.report.info("recover", f"{layout}: GPU memory {bench.gpu_mib()} MiB at the end")
            for line in job.output().splitlines():
                if re.search(r" [WE] \[|serves, after|is lost", line):
                    print(f"     {line[:230]}")


def recover_from(bench, job, what, victim, how, epoch, undisturbed):
    """One blow to the cluster of this epoch, with a stream that has to come out as if there had been none."""
    report, workers = bench.report, job.workers()
    stream = Stream(job.port, LONG, 120)
    if not wait_until(lambda: stream.tokens >= 10 or stream.ended.is_set(), 30) or stream.ended.is_set():
        raise Failed(f"{what}: no long stream to disturb: {stream.tokens} tokens, {stream.error}")
    struck, held = time.monotonic(), stream.tokens
    os.kill(workers[victim], how)
    dead = wait_until(lambda: not is_alive(workers[victim]), HANG_LIMIT + 5, 0.005)
    named = time.monotonic()
    if how == signal.SIGSTOP:
        report.judge(dead and named - struck <= HANG_LIMIT, "recover",
                     f"{what}: named and killed after {named - struck:.2f} s (limit {HANG_LIMIT})")
    for survivor in sorted(set(workers) - {victim}):
        said = re.compile(rf"\[worker {survivor}\] epoch {epoch} is lost")
        gave_up = wait_until(lambda: said.search(job.output()) or not is_alive(workers[survivor]), 10, 0.005)
        took = time.monotonic() - named
        report.judge(dead and gave_up and took <= 2, "recover", f"{what}: rank {survivor} gave up {took:.2f} s later (limit 2), "
                     f"its process {'stays' if is_alive(workers[survivor]) else 'is gone'}")
    serves = wait_until(lambda: f"epoch {epoch + 1} serves" in job.output(), 60, 0.01)
    report.judge(serves, "recover", f"{what}: serves again {time.monotonic() - named:.2f} s later")
    ended = stream.ended.wait(90)
    at = first_difference(stream.ids, undisturbed["token_ids"])
    margin = best_two(undisturbed, at) if at is not None and at < len(undisturbed["token_ids"]) else float("inf")
    text = f"{what}: {stream.tokens} of {LONG['max_tokens']} tokens, {held} before; "
    text += "the same" if at is None else f"part at {at} (margin {margin:.2g})"
    report.judge(ended and not stream.error and stream.tokens == LONG["max_tokens"] and (at is None or margin < F32_MARGIN),
                 "recover", text + (f"; {stream.error}" if stream.error else ""))


# ---- load

def clock(text, words):
    """Seconds of day of the last log line with these words."""
    found = re.findall(rf"(?m)^(\d+):(\d+):([\d.]+) .*{words}", text)
    if not found:
        raise Failed(f"no line says '{words}'")
    hours, minutes, seconds = found[-1]
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def check_load(bench):
    report = bench.report
    if not bench.options.model:
        report.skip("load", "no --model to make up")
        return
    place = pathlib.Path(bench.options.tmp or tempfile.gettempdir())
    free = shutil.disk_usage(place).free
    if free < 40e9 and bench.cuda:
        report.skip("load", f"{place} has {free / 1e9:.0f} GB free, and the checkpoint wants 40")
        return
    saved = pathlib.Path(tempfile.mkdtemp(prefix="polyreme-saved-", dir=place))
    try:
        job = bench.start([bench.options.program, "serve", bench.with_tokenizer(bench.options.model), "--load-format", "dummy",
                           "--save-checkpoint", saved / "model"])
        code = job.exit_code(300)
        took = time.monotonic() - job.start_time
        job.end()
        size = sum(f.stat().st_size for f in (saved / "model").glob("*.safetensors"))
        if not report.judge(code == 0 and size > 0, "load", f"saved {size / 1e9:.1f} GB in {took:.0f} s, exit code {code}"):
            print(last_lines(job.output(), 4))
            return
        bench.copy_tokenizer(saved / "model")
        uploads = measured_uploads(bench)
        for layout, ranks, flags in bench.layouts():
            for time_of in ("first", "second"):
                with bench.serving(saved / "model", ["--max-model-len", "8192", *flags]) as job:
                    text = job.output()
                    seconds = max(float(s) for s in re.findall(r"weights: [\d.]+ GiB in ([\d.]+) s", text))
                    complete(job.port, [5, 6, 7], 4)
                said = f"{layout}, {time_of} time: {size / 1e9:.1f} GB in {seconds:.2f} s, {size / seconds / 1e9:.1f} GB/s"
                if not uploads:
                    report.info("load", said)
                    continue
                share = size / seconds / (min(uploads) * ranks)
                said += f", {100 * share:.0f} % of {ranks} x {min(uploads) / 1e9:.1f} GB/s"
                if time_of == "first" or ranks > 1:
                    report.info("load", said)
                else:
                    report.judge(share >= 0.6, "load", said + " (limit 60 %)")
    finally:
        shutil.rmtree(saved, ignore_errors=True)


def measured_uploads(bench):
    """Bytes per second from the host to each GPU; empty where there is none."""
    if not bench.cuda:
        return []
    job = bench.start([bench.options.program, "devices", "--measure", "--json"])
    code = job.exit_code(120)
    job.end()
    if code != 0:
        raise Failed(f"polyreme devices --measure: exit code {code}\n{last_lines(job.output(), 4)}")
    text = job.output()
    return [gpu["upload_bytes_per_second"] for gpu in json.loads(text[text.index("{"):text.rindex("}") + 1])["gpus"]]


# ---- memory

def check_memory(bench):
    if not bench.options.model_full:
        bench.report.skip("memory", "no --model-full to make up")
        return
    shape = pathlib.Path(bench.options.model_full)
    siblings = [shape.with_name(shape.name.replace("40b", size)) for size in ("7b", "14b", "40b")]
    for folder in dict.fromkeys(path for path in siblings if path.exists()):
        for layout, _, flags in bench.layouts():
            with bench.serving(bench.with_tokenizer(folder), ["--load-format", "dummy", *flags]) as job:
                judge_memory(bench, job, f"{folder.name} {layout}", "memory")


def judge_memory(bench, job, what, check):
    """The ready lines: what `polyreme plan` says of each rank beside what it took."""
    said = re.findall(r"ready: (rank .*predicted .*)", job.output())
    off = [float(n) for n in re.findall(r": ([+-][\d.]+) %", "\n".join(said))]
    bench.report.judge(off and max(map(abs, off)) <= 2, check, f"{what}: memory as predicted within 2 %: " + "; ".join(said))


# ---- full

def check_full(bench):
    if not bench.options.model_full:
        bench.report.skip("full", "no --model-full to make up")
        return
    folder = bench.with_tokenizer(bench.options.model_full)
    for layout, flags in [("tp1", ["-tp", "1"])] + ([("tp2", ["-tp", "2"])] if bench.gpus >= 2 else []):
        if layout in bench.options.full_layouts.split(","):
            with bench.serving(folder, ["--load-format", "dummy", *flags]) as job:
                fill(bench, job, layout, vocabulary(folder))


def fill(bench, job, layout, words):
    report, scale = bench.report, 1 if bench.cuda else 64
    room = int(get(job.port, "/v1/models")["data"][0]["max_model_len"])
    cached = [int(n.replace(",", "")) for n in re.findall(r"\(([\d,]+) tokens\)", job.output())]
    longest = min([room, *cached, 131072 // scale]) - 64
    report.info("full", f"{layout}: ready in {job.ready_seconds:.1f} s; cache of {min(cached or [0])} tokens, context {room}")
    for line in re.findall(r"ready: rank .*", job.output()):
        report.info("full", f"{layout}: {line}")
    judge_memory(bench, job, layout, "full")
    before, ours = bench.gpu_mib(), bench.process_mib(job)
    work = [("long prompt", [longest, 1, 1])] + [("sequence", [2048 // scale, 1, 1])] * 256 + [("n=16", [8192 // scale, 16, 1])]
    draw, started = random.Random(6), time.monotonic()
    counts, codes = collections.Counter(), collections.Counter()

    def ask(kind, length, n):
        prompt = [draw.randrange(100, words - 2000) for _ in range(length)]
        body = {"prompt": prompt, "max_tokens": 32, "temperature": 0.8, "ignore_eos": True, "n": n, "return_token_ids": True}
        try:
            status, answer = post(job.port, "/v1/completions", body, bench.options.full_limit)
        except (OSError, ValueError, http.client.HTTPException) as failure:
            return kind, f"no answer ({failure!r})"
        whole = status == 200 and [len(c["token_ids"]) for c in answer["choices"]] == [32] * n
        return kind, "whole" if whole else f"status {status}: {json.dumps(answer)[:160]}" if status != 200 else "short"

    with concurrent.futures.ThreadPoolExecutor(len(work)) as pool:
        for future in [pool.submit(ask, kind, length, n) for kind, (length, n, _) in work]:
            kind, said = future.result()
            counts[kind] += said == "whole"
            codes[said] += 1
    took = time.monotonic() - started
    report.judge(all(said == "whole" or said.startswith("status 4") for said in codes), "full",
                 f"{layout}: in {took:.1f} s the prompt of {longest} tokens {counts['long prompt']} of 1, sequences of "
                 f"{2048 // scale} {counts['sequence']} of 256, n = 16 of {8192 // scale} {counts['n=16']} of 1"
                 + "".join(f"; {count} x {said}" for said, count in codes.items() if said != "whole"))
    failed = [line for line in job.output().splitlines() if re.search(r" E \[|out of memory|[Cc]annot allocate", line)]
    report.judge(not failed and job.process.poll() is None, "full",
                 f"{layout}: {failed[0] if failed else 'nothing failed, and it still serves'}")
    if before is not None and bench.cuda:
        after, ours_after = bench.gpu_mib(), bench.process_mib(job)
        own = f"; its processes {ours} and {ours_after} MiB" if ours is not None else ""
        grown = ours_after - ours if ours is not None and ours_after is not None else after - before
        report.judge(grown <= GROWTH_MIB, "full", f"{layout}: GPU memory {before} MiB before and {after} MiB after{own}")


# ---- refusals

def check_refusals(bench):
    demo, program = bench.options.model_demo, bench.options.program
    line = [program, "serve", demo, "--port", "0", "--device", "cuda"]
    cases = [("no visible GPU", line, {"CUDA_VISIBLE_DEVICES": ""}, r"GPU|CUDA|driver")]
    if bench.cuda:
        cases.append(("-tp 4 on fewer GPUs", [*line, "-tp", "4"], {"CUDA_VISIBLE_DEVICES": visible(bench.gpus)}, r"GPU"))
        if shutil.which("mpirun"):
            cases.append(("two ranks on one GPU", [*mpirun(2), *line, "-tp", "2"], {"CUDA_VISIBLE_DEVICES": visible(1)},
                          r"GPU"))
    for what, command, environment, pattern in cases:
        job = bench.start(command, environment)
        code = job.exit_code(20)
        took = time.monotonic() - job.start_time
        job.end()
        text = job.output()
        clean = not re.search(r"CHECK failed|terminate called|Segmentation|Aborted|core dumped", text)
        said = [row for row in text.splitlines() if re.search(pattern, row)]
        sentence = next((row for row in said if row.startswith("polyreme")), said[0] if said else "no sentence")
        rows = len(text.strip().splitlines())
        report_text = f"{what}: exit code {code} in {took:.1f} s, {rows} lines: {sentence[:300]}"
        if not bench.report.judge(code not in (None, 0) and clean and bool(said), "refusals", report_text):
            print(last_lines(text, 6))


def visible(count):
    """The first GPUs of those that we may use."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else [str(i) for i in range(count)]
    return ",".join(names[:count])


# ---- restart

def check_restart(bench):
    for name, folder, flags, _ in bench.models():
        cache = tempfile.mkdtemp(prefix="cache-", dir=bench.scratch)
        for time_of in ("first", "second"):
            with bench.serving(folder, flags, environment={"XDG_CACHE_HOME": cache}) as job:
                stream = Stream(job.port, {"prompt": [5, 6, 7], "max_tokens": 4, "temperature": 0, "ignore_eos": True,
                                           "return_token_ids": True}, 60)
                stream.ended.wait(60)
                if stream.first is None:
                    raise Failed(f"{name}: no first token: {stream.error}")
                joined = [clock(job.output(), words) for words in
                          ("ranks have joined", "have loaded their weights", "ready: serving")]
                bench.report.info("restart", f"{name}, {time_of} start: ready in {job.ready_seconds:.2f} s (weights "
                                  f"{joined[1] - joined[0]:.2f}, then {joined[2] - joined[1]:.2f}), first token at "
                                  f"{stream.first - job.start_time:.2f} s")


# ---- the whole

def parse_options():
    here = pathlib.Path(__file__).resolve().parent
    root = here.parent

    def first_of(*paths):
        return next((str(p) for p in paths if pathlib.Path(p).exists()), None)

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=first_of(here / "polyreme", root / "build/cuda-release/polyreme"))
    parser.add_argument("--model-demo", default=first_of(root / "deploy/demo-model", root / "models/demo-model",
                                                         "deploy/demo-model"), help="the demo model, with weights and goldens")
    parser.add_argument("--model", help="folder of a config.json; weights are made up (default: the 7B shape's; '' for none)")
    parser.add_argument("--model-full", help="the same, for full (default: the 40B shape's; '' for none)")
    parser.add_argument("--only", default=",".join(CHECKS), help="checks to run, in this order")
    parser.add_argument("--gpus", type=int, help="GPUs to use, 1 or 2 (default: those there, 2 at most)")
    parser.add_argument("--tmp", help="where load saves its checkpoint (default: TMPDIR)")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: proves this script's own logic")
    parser.add_argument("--start-limit", type=int, default=120, help="seconds for a cluster to get ready")
    parser.add_argument("--full-limit", type=int, default=240, help="seconds for the answers of full")
    parser.add_argument("--full-layouts", default="tp1,tp2")
    options = parser.parse_args()
    shapes = [root / "models", root / "deploy/bench/configs"]
    if options.model is None and options.device == "cuda":
        options.model = first_of(*(folder / "iquest-coder-v1-7b" for folder in shapes))
    if options.model_full is None and options.device == "cuda":
        options.model_full = first_of(*(folder / "iquest-coder-v1-40b" for folder in shapes))
    if not options.program or not os.access(options.program, os.X_OK):
        parser.error(f"no program to check: {options.program}; build one, or give --program")
    options.program = str(pathlib.Path(options.program).resolve())
    if not options.model_demo or not (pathlib.Path(options.model_demo) / "golden_greedy_fp32.json").exists():
        parser.error("no demo model with its goldens here: give --model-demo")
    unknown = set(options.only.split(",")) - set(CHECKS)
    if unknown:
        parser.error(f"no check is called {', '.join(sorted(unknown))}; expected {', '.join(CHECKS)}")
    if options.gpus is None:
        options.gpus = 2 if options.device == "cpu" else min(2, count_gpus())
    if options.gpus < 1:
        parser.error("no GPU here (nvidia-smi lists none)")
    return options


def count_gpus():
    try:
        text = subprocess.run(["nvidia-smi", "-L"], timeout=20, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    there = len(text.strip().splitlines())
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return there if given is None else min(there, len([name for name in given.split(",") if name]))


def main():
    options = parse_options()
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")  # multicast is never needed, and where it is broken it hangs
    report = Report()
    with tempfile.TemporaryDirectory(prefix="polyreme-check-", ignore_cleanup_errors=True) as scratch:
        bench = Bench(options, report, scratch)

        def leave(number, _):
            for job in bench.jobs:  # first, so that no thread waits for an answer
                job.end()
            sys.exit(128 + number)

        signal.signal(signal.SIGTERM, leave)
        signal.signal(signal.SIGINT, leave)
        try:
            for name in options.only.split(","):
                started = time.monotonic()
                try:
                    globals()[f"check_{name}"](bench)
                except (Failed, OSError, ValueError, LookupError, http.client.HTTPException) as failure:
                    report.say("FAIL", name, str(failure) if isinstance(failure, Failed) else repr(failure))
                    if bench.jobs and not isinstance(failure, Failed):
                        print(last_lines(bench.jobs[-1].output(), 8))
                print(f"--   {name}: {time.monotonic() - started:.1f} s", flush=True)
        finally:
            for job in bench.jobs:
                job.end()
    if report.failures:
        print("\n" + "\n".join(report.failures))
    print(", ".join(f"{report.counts[verdict]} {verdict}" for verdict in ("ok", "FAIL", "info", "skip")))
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
