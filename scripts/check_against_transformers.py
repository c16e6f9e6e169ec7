#!/usr/bin/env python3
"""How far our log-probabilities are from Transformers' in float32, against how far Transformers' own in bf16 are.

  check_against_transformers.py CHECKPOINT [--program polyreme] [--device cuda] [--lengths 1,17,...] [--bound 1.2] [--work DIR]

CHECKPOINT is a folder of safetensors (polyreme --load-format dummy --save-checkpoint writes one). Eight prompts of random
tokens, up to 8192 long. Compared are the log-probabilities of the next token at every position, as root mean squares of the
differences. Exit code 1 if ours are more than --bound times as far as bf16's. float32 wants four bytes a weight on the GPU.
"""
import argparse
import gc
import json
import math
import os
import random
import subprocess
import sys
import tempfile

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

LENGTHS = "16,100,511,1024,2048,4096,6144,8192"


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--program", default="polyreme")
    parser.add_argument("--device", default="cuda", help="ours: cuda or cpu; Transformers runs where this says, too")
    parser.add_argument("--lengths", default=LENGTHS)
    parser.add_argument("--bound", type=float, default=1.2)
    parser.add_argument("--work", default=None, help="keeps prompts and our scores there")
    parser.add_argument("--flags", default="", help="more flags for polyreme bench score")
    return parser.parse_args()


def config_of(folder):
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        keys = json.load(file)
    # IQuest's family is plain Llama under another name.
    if keys["model_type"] == "iquestcoder":
        for key in ("architectures", "model_type", "auto_map", "clip_qkv", "sliding_window", "use_sliding_window"):
            keys.pop(key, None)
        return LlamaConfig(**keys), LlamaForCausalLM
    return transformers.AutoConfig.from_pretrained(folder), transformers.AutoModelForCausalLM


def scores_of(folder, dtype, device, prompts):
    """For each prompt the log-probabilities of its tokens but the first."""
    config, family = config_of(folder)
    model = family.from_pretrained(folder, config=config, dtype=dtype, attn_implementation="sdpa").to(device).eval()
    # Products in plain float32, not in TF32.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    scores = []
    with torch.inference_mode():
        for tokens in prompts:
            ids = torch.tensor([tokens], device=device)
            hidden = model.model(ids, use_cache=False).last_hidden_state[0]
            parts = []
            # The head by pieces: all logits of 8192 tokens in float32 are gigabytes.
            for begin in range(0, len(tokens) - 1, 512):
                end = min(begin + 512, len(tokens) - 1)
                logits = model.lm_head(hidden[begin:end]).float()
                targets = ids[0, begin + 1:end + 1]
                parts.append((logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(1)).cpu())
            scores.append(torch.cat(parts).double())
    del model
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    return scores


def our_scores(arguments, prompts, folder):
    prompts_file, scores_file = os.path.join(folder, "prompts.jsonl"), os.path.join(folder, "scores.jsonl")
    with open(prompts_file, "w", encoding="utf-8") as file:
        for tokens in prompts:
            print(json.dumps({"tokens": tokens}), file=file)
    command = [arguments.program, "bench", "score", arguments.checkpoint, "--device", arguments.device,
               "--input", prompts_file, "--output", scores_file] + arguments.flags.split()
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True)
    with open(scores_file, encoding="utf-8") as file:
        return [torch.tensor(json.loads(line)["logprobs"], dtype=torch.float64) for line in file]


def rms(values):
    return math.sqrt(float((values * values).mean()))


def main():
    arguments = parse_arguments()
    vocabulary = config_of(arguments.checkpoint)[0].vocab_size
    draw = random.Random(7)
    prompts = [[draw.randrange(vocabulary) for _ in range(int(n))] for n in arguments.lengths.split(",")]
    device = "cuda" if arguments.device == "cuda" else "cpu"
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.work:
            os.makedirs(arguments.work, exist_ok=True)
        ours = our_scores(arguments, prompts, arguments.work or scratch)
    exact = scores_of(arguments.checkpoint, torch.float32, device, prompts)
    rounded = scores_of(arguments.checkpoint, torch.bfloat16, device, prompts)
    print(f"transformers {transformers.__version__}, torch {torch.__version__}, {arguments.checkpoint}")
    print(f"{'tokens':>8} {'ours, rms':>12} {'bf16, rms':>12} {'ratio':>8} {'ours, most':>12} {'bf16, most':>12}")
    for tokens, a, b, truth in zip(prompts, ours, rounded, exact):
        if len(a) != len(truth):
            sys.exit(f"{len(tokens)} tokens: expected {len(truth)} scores, got {len(a)}")
        ratio = rms(a - truth) / max(rms(b - truth), 1e-12)
        print(f"{len(tokens):>8} {rms(a - truth):>12.3e} {rms(b - truth):>12.3e} {ratio:>8.3f} "
              f"{float((a - truth).abs().max()):>12.3e} {float((b - truth).abs().max()):>12.3e}")
    ours_far = rms(torch.cat([a - t for a, t in zip(ours, exact)]))
    bf16_far = rms(torch.cat([b - t for b, t in zip(rounded, exact)]))
    ratio = ours_far / max(bf16_far, 1e-12)
    verdict = "within" if ratio <= arguments.bound else "BEYOND"
    print(f"all: ours {ours_far:.3e}, bf16 {bf16_far:.3e}, ratio {ratio:.3f}: {verdict} the bound of {arguments.bound}")
    sys.exit(0 if ratio <= arguments.bound else 1)


if __name__ == "__main__":
    main()
