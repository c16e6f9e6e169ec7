#!/usr/bin/env python3
"""What Transformers does on one GPU with the same shape: random bf16 weights, generate with SDPA.

  bench_transformers.py MODEL [DEVICE [LENGTH]]    MODEL: a folder with a config.json; default: cuda 2048

Decode after prompts of LENGTH tokens; prompts of LENGTH and of four times as many.

Prints a line for each figure: transformers WHAT SIZE ms tokens/s. Decode is the mean over steps after the prompt, prompts are
the median of three.
"""
import json
import os
import sys
import time

import torch
import transformers


def make_model(folder, device):
    """The model of config.json, its weights drawn on the GPU."""
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        keys = json.load(file)
    # The family is plain Llama under another name.
    names = ("hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim vocab_size "
             "max_position_embeddings rms_norm_eps rope_theta attention_bias mlp_bias tie_word_embeddings").split()
    config = transformers.LlamaConfig(**{name: keys[name] for name in names if name in keys}, eos_token_id=None)
    config._attn_implementation = "sdpa"
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    model = model.to_empty(device=device)
    for name, tensor in model.named_parameters():
        if tensor.dim() == 1:
            tensor.data.fill_(1.0)
        else:
            tensor.data.normal_(0, tensor.shape[-1] ** -0.5)
    # What is computed at construction was left behind with the meta device.
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config).to(device)
    return model.eval()


def seconds_of(body):
    wait = torch.cuda.synchronize if torch.cuda.is_available() else (lambda: None)
    wait()
    start = time.monotonic()
    body()
    wait()
    return time.monotonic() - start


def main():
    device = sys.argv[2] if len(sys.argv) > 2 else "cuda"
    length = int(sys.argv[3]) if len(sys.argv) > 3 else 2048
    model = make_model(sys.argv[1], device)
    vocabulary = model.config.vocab_size
    torch.manual_seed(1)

    def prompt(batch, tokens):
        return torch.randint(3, vocabulary, (batch, tokens), device=device)

    def generate(ids, new_tokens):
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, min_new_tokens=new_tokens,
                       do_sample=False, pad_token_id=0)

    name = torch.cuda.get_device_name(0) if device == "cuda" else device
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {name}", flush=True)
    with torch.inference_mode():
        generate(prompt(1, min(length, 128)), 4)
        for tokens in (length, 4 * length):
            ids = prompt(1, tokens)
            times = sorted(seconds_of(lambda: generate(ids, 1)) for _ in range(4))
            print(f"transformers prompt {tokens} {times[1] * 1e3:.2f} {tokens / times[1]:.1f}", flush=True)
        for batch in (1, 8, 32):
            steps = 32
            ids = prompt(batch, length)
            first = min(seconds_of(lambda: generate(ids, 1)) for _ in range(2))
            step = (seconds_of(lambda: generate(ids, 1 + steps)) - first) / steps
            print(f"transformers decode {batch}x{length} {step * 1e3:.2f} {batch / step:.1f}", flush=True)


if __name__ == "__main__":
    main()
