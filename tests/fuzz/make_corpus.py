#!/usr/bin/env python3
"""Writes the seeds of tests/fuzz/corpus from the inputs that other tests have. Files named found_* are not its own: each is
an input on which a target once failed, and stays.

    python3 tests/fuzz/make_corpus.py
"""
import json
import pathlib
import struct

ROOT = pathlib.Path(__file__).resolve().parents[2]
CORPUS = ROOT / "tests/fuzz/corpus"
DATA = ROOT / "tests/data"


def write(target, name, content):
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def http():
    head = "Host: a\r\n"
    requests = {
        "get": f"GET /v1/models?a=%20b HTTP/1.1\r\n{head}\r\n",
        "post": f"POST /v1/completions HTTP/1.1\r\n{head}Content-Length: 4\r\nExpect: 100-continue\r\n\r\n{{ }}",
        "chunked": f"POST / HTTP/1.1\r\n{head}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n",
        "old": "GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n",
        "absolute": f"GET http://a/x HTTP/1.1\r\n{head}X-Request-Id: 1\r\n\r\n",
        "both": f"POST / HTTP/1.1\r\n{head}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "options": "OPTIONS * HTTP/1.1\r\nHost: [::1]:80\r\nAuthorization: Bearer k\r\n\r\n",
        "folded": f"GET / HTTP/1.1\r\n{head}A: b\r\n c\r\n\r\n",
    }
    for name, text in requests.items():
        write("http", name, b"\x06" + text.encode())


def json_texts():
    texts = {
        "scalars": "[null, true, false, 0, -1, 9223372036854775807, -9223372036854775808, 1e5, -0.0, 0.1, 1e-320]",
        "big": "[18446744073709551615, 123456789012345678901234567890, 1.7976931348623157e308]",
        "strings": r'{"a": "\u00e9\ud83d\ude00\n\t\"\\\/", "b\u0000": "é東", "": ""}',
        "nested": "[" * 20 + "{}" + "]" * 20,
        "duplicate": '{"a": 1, "a": 2}',
        "lone": r'["\ud800"]',
        "range": "1e999",
        "bom": "\ufeff{}",
        "many": "[" + "1," * 300 + "1]",
    }
    for name, text in texts.items():
        write("json", name, text)


def openai():
    bodies = {
        "text": (0, {"model": "tiny", "prompt": "abc", "max_tokens": 5, "temperature": 0.5, "stop": ["x", "yz"], "seed": -1}),
        "tokens": (0, {"prompt": [[1, 2], [260]], "n": 2, "logprobs": 2, "echo": True, "logit_bias": {"5": -100, "6": 1.5}}),
        "stream": (0, {"prompt": ["a", "b"], "stream": True, "stream_options": {"include_usage": True}, "best_of": 1,
                       "top_k": -1, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1, "presence_penalty": -2,
                       "frequency_penalty": 2, "min_tokens": 1, "stop_token_ids": [3], "ignore_eos": True}),
        "score": (0, {"prompt": "ab", "max_tokens": 0, "echo": True, "prompt_logprobs": 1, "truncate_prompt_tokens": 3,
                      "allowed_token_ids": [1, 2], "return_token_ids": True, "skip_special_tokens": False}),
        "chat": (1, {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "hi <|end|>"}],
                     "max_completion_tokens": 4, "logprobs": True, "top_logprobs": 2}),
        "parts": (1, {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
                      "chat_template_kwargs": {"enable_thinking": False}, "add_generation_prompt": True}),
        "tools": (1, {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]},
            {"role": "tool", "tool_call_id": "1", "content": "2"}],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}], "tool_choice": "none"}),
        "continue": (1, {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
                         "continue_final_message": True, "add_generation_prompt": False, "response_format": {"type": "text"}}),
    }
    for name, (face, body) in bodies.items():
        write("openai", name, bytes([face]) + json.dumps(body).encode())
    # v1.GenerateRequest: model, prompt.text, n, max_tokens, stop, temperature, logit_bias.
    write("openai", "generate", b"\x02" + b"\x12\x04tiny" + b"\x1a\x05\x0a\x03abc" + b"\x20\x02\x28\x05" + b"\x4a\x01x" +
          b"\x61" + struct.pack("<d", 0.5) + b"\x9a\x01\x02\x08\x05")
    write("openai", "generate_tokens", b"\x02" + b"\x1a\x07\x12\x05\x0a\x03\x01\x02\x03")


def safetensors():
    def file(header, data):
        text = header if isinstance(header, str) else json.dumps(header)
        return struct.pack("<Q", len(text)) + text.encode() + data

    one = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    write("safetensors", "two", file({"__metadata__": {"format": "pt"}, "a": one,
                                      "b": {"dtype": "BF16", "shape": [3], "data_offsets": [16, 22]}}, bytes(range(22))))
    write("safetensors", "padded", file(json.dumps({"a": one}) + "   ", bytes(16)))
    write("safetensors", "empty", file({}, b""))
    write("safetensors", "no_elements", file({"a": {"dtype": "F4", "shape": [0, 5], "data_offsets": [0, 0]}}, b""))
    write("safetensors", "overflow", file({"a": {"dtype": "U8", "shape": [4194305, 4194305, 211106198978564],
                                                 "data_offsets": [0, 4]}}, bytes(4)))
    write("safetensors", "duplicate", file('{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{}}', b""))
    write("safetensors", "hole", file({"a": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]}}, bytes(3)))
    write("safetensors", "length", struct.pack("<Q", 2**64 - 1) + b"{}")


def tokenizer():
    alphabet = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 256 + 68))]
    vocab = {c: i for i, c in enumerate(alphabet)}
    for token in ("ab", "abc", "Ġa"):
        vocab[token] = len(vocab)
    base = {"added_tokens": [{"id": 259, "content": "<s>", "special": True, "normalized": False},
                             {"id": 260, "content": "<t>", "special": False, "lstrip": True, "single_word": True}],
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True},
            "post_processor": None, "decoder": {"type": "ByteLevel"},
            "model": {"type": "BPE", "vocab": vocab, "merges": ["a b", "ab c", ["Ġ", "a"]]}}
    config = {"bos_token": "<s>", "eos_token": {"content": "<s>"}, "additional_special_tokens": ["<t>"],
              "added_tokens_decoder": {"259": {"content": "<s>", "special": True}}}

    def seed(name, change=None, text="abc <s>é a<t>  東\n12"):
        whole = json.loads(json.dumps(base))
        whole.update(change or {})
        parts = (json.dumps(whole, ensure_ascii=False, separators=(",", ":")), json.dumps(config), text)
        write("tokenizer", name, "\0".join(parts))

    seed("byte_level")
    seed("split", {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": r"(?i:'s|'t)|\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"},
         "behavior": "Isolated", "invert": False},
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]}})
    seed("template", {"post_processor": {
        "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [259], "tokens": ["<s>"]}}},
        "normalizer": {"type": "Sequence", "normalizers": []}})
    small = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"], "byte_fallback": False,
                       "ignore_merges": True}, "added_tokens": [], "normalizer": None,
             "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}}
    parts = json.dumps({**base, **small}), "{}", "abba"
    write("tokenizer", "small", "\0".join(parts))


def config():
    for folder in sorted((DATA / "models").iterdir()):
        if not (folder / "config.json").exists():
            continue
        text = (folder / "config.json").read_bytes()
        generation = folder / "generation_config.json"
        write("config", folder.name, text + b"\0" + (generation.read_bytes() if generation.exists() else b'{"eos_token_id": [1, 2]}'))


def jinja():
    messages = json.dumps([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "<b>", "tool_calls": [
        {"function": {"name": "f", "arguments": {"a": 1}}}]}])
    for path in sorted((DATA / "templates").glob("*.jinja")):
        write("jinja", path.stem, path.read_text() + "\0" + messages)
    for i, snippet in enumerate((DATA / "templates/snippets.txt").read_text().split("\n---\n")):
        if i % 4 == 0:
            write("jinja", f"snippet_{i:03d}", snippet)


def plan():
    def number(field, value):
        return varint(field << 3) + varint(value)

    def block(field, content):
        return varint(field << 3 | 2) + varint(len(content)) + content

    def varint(value):
        out = b""
        while value > 127:
            out += bytes([value & 127 | 128])
            value >>= 7
        return out + bytes([value])

    def packed(field, *values):
        return block(field, b"".join(varint(v) for v in values))

    def real(field, value):
        return varint(field << 3 | 5) + struct.pack("<f", value)

    # As proto/step.proto has them.
    sampling = real(1, 0.5) + real(3, 1) + real(5, 1) + packed(8, 3) + block(9, struct.pack("<f", 2)) + number(15, 1)
    opened = number(3, 1) + packed(4, 5, 6) + number(5, 2) + packed(6, 0) + block(7, sampling)
    rows = packed(1, 0) + packed(2, 0) + packed(3, 2)
    samples = packed(1, 0) + packed(2, 0) + packed(3, 1) + packed(4, 0)
    first = number(2, 1) + block(3, opened) + block(8, rows) + packed(9, 5, 6) + block(10, samples)
    write("plan", "empty", b"")
    write("plan", "first", first)
    write("plan", "fork", first + block(3, number(1, 1) + number(2, 0) + number(3, 2) + packed(6, 1)) +
          packed(6, 0) + packed(7, 1))
    write("plan", "later", number(1, 3) + number(2, 1) + block(4, number(1, 0) + packed(2, 4)) + packed(5, 1) +
          block(8, packed(1, 0) + packed(2, 4) + packed(3, 1) + packed(4, 0) + packed(5, 2) + packed(6, 0)) + packed(9, 0))
    results = packed(1, 7) + packed(2, 1) + block(3, struct.pack("<f", -1)) + packed(4, 1) + packed(5, 1) + packed(6, 7) + \
        block(7, struct.pack("<f", -1))
    write("plan", "result", number(1, 3) + number(2, 1) + block(3, results) + block(4, number(1, 1) + number(2, 5) + number(3, 6)))


def launch():
    write("launch", "nodes", "n[01-04,7],x\0" + "2(x2),3\0" + "SLURM_PROCID=1\nSLURM_NTASKS=4\nSLURM_LOCALID=1\nSLURM_JOB_ID=7\n"
          "SLURM_STEP_ID=0\nSLURM_STEP_NODELIST=n[1-2]\nSLURM_STEP_TASKS_PER_NODE=2(x2)\nSLURM_NODEID=0\nSLURM_STEP_NUM_TASKS=4\n")
    write("launch", "racks", "r[1-2]n[0-1]\0" + "1\0" + "RANK=1\nWORLD_SIZE=2\nLOCAL_RANK=1\nLOCAL_WORLD_SIZE=2\n"
          "MASTER_ADDR=a\nMASTER_PORT=29500\nTORCHELASTIC_RUN_ID=x\n")
    write("launch", "mpi", "a\0" + "1(x1)\0" + "OMPI_COMM_WORLD_RANK=0\nOMPI_COMM_WORLD_SIZE=2\nOMPI_COMM_WORLD_LOCAL_RANK=0\n"
          "OMPI_COMM_WORLD_LOCAL_SIZE=2\nPMIX_NAMESPACE=j\nPMIX_RANK=0\nPMIX_SERVER_URI2=p;tcp4://1.2.3.4:5\n")
    write("launch", "pmi", "\0\0PMI_RANK=0\nPMI_SIZE=2\nPMI_JOBID=3\nMPI_LOCALRANKID=0\nMPI_LOCALNRANKS=1\n")


def flight():
    # As parallel/trace/flight_format.h has them.
    def record(rank=0, stages=1, shards=2, steps=(), operations=(), capacity=(2, 3), version=1, saved_by=1):
        header = struct.pack("<8sIIIIiiiiIIqqqQQqq64s64s792s", b"polyflgt", version, 64, *capacity, rank, stages, shards, 4711, 0,
                             saved_by, 10**18, 10**18 + 9, 2, len(steps), len(operations), 8, 4, b"job", b"host", b"worker lost")
        assert len(header) == 1024
        return header + b"".join(table(entries, room) for entries, room in zip((steps, operations), capacity))

    def table(entries, room):
        slots = [bytes(64)] * room
        for number, (kind, group, peer, sequence, state) in enumerate(entries):
            what = kind | group << 8 | peer + 1 << 16 | 2 << 32
            slots[number % room] = struct.pack("<8Q", number + 1, 100 + number, 0 if state == 0 else 200, 4, sequence, 64, what, state)
        return b"".join(slots)

    step, done, failed = (0, 0, -1, 5, 2), 2, 3
    write("flight", "empty", record())
    write("flight", "waits", record(steps=[step], operations=[(1, 1, -1, 8, done), (1, 1, -1, 9, failed)]))
    write("flight", "wrapped", record(steps=[step] * 5, operations=[(3, 1, -1, i, done) for i in range(7)], saved_by=2))
    write("flight", "stages", record(rank=2, stages=2, steps=[step], operations=[(6, 2, 0, 3, done), (6, 2, 0, 4, 0)]))
    write("flight", "tokens", record(stages=2, operations=[(5, 2, 1, 3, done), (8, 2, 1, 4, failed)], saved_by=3))
    write("flight", "coordinator", record(rank=-1, steps=[step]))
    write("flight", "newer", record(version=2))


def bench():
    chunk = 'data: {"id":"c","choices":[{"index":0,"text":" a","logprobs":null,"finish_reason":null}],"usage":null}\n\n'
    delta = 'data: {"choices":[{"delta":{"role":"assistant","content":"b"},"finish_reason":null}]}\r\n\r\n'
    usage = 'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\n'
    end = ": ping\n\ndata: [DONE]\n\n"
    head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"

    def chunked(*parts):
        return "".join(f"{len(p):x};x=y\r\n{p}\r\n" for p in parts) + "0\r\nT: 1\r\n\r\n"

    error = '{"error":{"message":"too long","code":400}}'
    answers = {
        "stream": f"HTTP/1.1 100 Continue\r\n\r\n{head}Transfer-Encoding: chunked\r\n\r\n" + chunked(chunk, delta, usage + end),
        "until_end": f"{head}Connection: close\r\n\r\n{chunk}{usage}{end}",
        "length": f"HTTP/1.1 400 Bad Request\nContent-Length: {len(error)}\n\n{error}",
        "none": "HTTP/1.0 204 No Content\r\n\r\n",
        "failed": f'{head}\r\ndata: {{"error":{{"message":"gone"}}}}\n\n{end}',
        "models": '{"object":"list","data":[{"id":"a","max_model_len":128},{"id":"b"}]}',
        "url": "http://[::1]:8000/v1/",
        "metrics": 'vllm:kv_cache_usage_perc{engine="0"} 0.5\npolyreme_kv_cache_usage_perc 0.25\n',
        "trace": '{"timestamp": 3, "prompt": "x", "output_tokens": 2}\n{"time": 1.5, "prompt": "y", "output_tokens": 1}\n',
        "result": '{"schema":"polyreme.bench/1","kind":"sweep","conditions":{},"settings":{"model":"m"},"points":[{"name":"c",'
                  '"rounds":[{"output_tok_per_s":3,"failed":0},{"output_tok_per_s":4,"failed":null}]}]}',
    }
    for name, text in answers.items():
        write("bench", name, b"\x06" + text.encode())


for make in (http, json_texts, openai, safetensors, tokenizer, config, jinja, plan, launch, flight, bench):
    make()
