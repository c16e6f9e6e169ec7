#!/usr/bin/env python3
"""Makes the tiny random checkpoints of tests/data/models, each with what Transformers computes from it.

Usage: make_tiny_model.py [--out tests/data/models] [name ...]      (all by default)

Needs torch, transformers >= 5 and safetensors. Weights come from numpy's generator, seeded by the
checkpoint's name, and are rounded to the storage type before anything is computed, so that the files are
the same wherever this runs. golden.json is then made by Transformers from the files just written: float32,
eager attention, CPU, no cache. tests/data/models/README.md says what is in it.
"""

import argparse
import json
import pathlib
import shutil
import tempfile
import zlib

import numpy
import torch
import transformers
from safetensors.torch import save_file

ROOT = pathlib.Path(__file__).resolve().parent.parent
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
PROMPT_LENGTHS = (1, 7, 33, 80)
NUM_GREEDY = 64

# What the checkpoints have in common, in the spelling of Transformers 4.
COMMON = {
    "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": 64, "initializer_range": 0.02, "intermediate_size": 96,
    "max_position_embeddings": 256, "num_attention_heads": 8, "num_hidden_layers": 4,
    "num_key_value_heads": 4, "rms_norm_eps": 1e-5, "rope_scaling": None, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.46.0",
    "use_cache": True, "vocab_size": 512,
}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False,
         "mlp_bias": False, "pretraining_tp": 1}
YARN = {"factor": 4.0, "original_max_position_embeddings": 64, "type": "yarn"}
LLAMA3 = {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
          "original_max_position_embeddings": 64, "rope_type": "llama3"}

# name: (config, number of files, spelling)
MODELS = {
    "llama_tied": (LLAMA | {"tie_word_embeddings": True, "intermediate_size": 160}, 1, 4),
    "llama_rope_llama3": (
        LLAMA | {"rope_scaling": LLAMA3, "num_key_value_heads": 2, "torch_dtype": "float16",
                 "eos_token_id": [2, 7]}, 1, 5),
    "llama_rope_linear": (
        LLAMA | {"rope_scaling": {"factor": 4.0, "type": "linear"}, "rope_theta": 100000,
                 "num_key_value_heads": 8, "torch_dtype": "float32", "num_hidden_layers": 2,
                 "rms_norm_eps": 1e-6}, 1, 4),
    "llama_rope_yarn": (
        LLAMA | {"rope_scaling": YARN, "rope_theta": 500000.0, "num_key_value_heads": 1}, 1, 4),
    "llama_biases": (LLAMA | {"attention_bias": True, "mlp_bias": True,
                             "intermediate_size": 128}, 1, 5),
    "mistral_head_dim": (
        {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "head_dim": 16,
         "num_key_value_heads": 2, "sliding_window": None, "rope_theta": 1000000.0,
         "num_hidden_layers": 3, "torch_dtype": "float16"}, 1, 4),
    "qwen2_sharded": (
        {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 515,
         "intermediate_size": 128, "max_window_layers": 4, "sliding_window": 128,
         "use_sliding_window": False, "rope_theta": 1000000.0, "rms_norm_eps": 1e-6}, 3, 4),
    "qwen3_tied": (
        {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 16,
         "num_key_value_heads": 2, "attention_bias": False, "rms_norm_eps": 1e-6,
         "tie_word_embeddings": True, "rope_theta": 1000000.0}, 1, 5),
    "iquestcoder": (
        {"architectures": ["IQuestCoderForCausalLM"], "model_type": "iquestcoder",
         "attention_bias": False, "mlp_bias": False, "head_dim": 8, "clip_qkv": None,
         "use_sliding_window": False, "sliding_window": None, "max_window_layers": 0,
         "rope_theta": 500000.0, "eos_token_id": [2, 3, 4]}, 1, 4),
}


def spelled(config, spelling):
    """The config as Transformers 4 or 5 writes it to config.json."""
    config = dict(config)
    if spelling == 5:
        config["dtype"] = config.pop("torch_dtype")
        rope = dict(config.pop("rope_scaling") or {"rope_type": "default"})
        config["rope_parameters"] = rope | {"rope_theta": config.pop("rope_theta")}
        config["transformers_version"] = transformers.__version__
    return dict(sorted(config.items()))


def readable(config):
    """The same config under a name that Transformers knows: IQuest-Coder's layers are Llama's."""
    if config["model_type"] != "iquestcoder":
        return config
    unused = ("clip_qkv", "use_sliding_window", "sliding_window", "max_window_layers")
    return {key: value for key, value in config.items() if key not in unused} | LLAMA


def load(folder, config):
    with tempfile.TemporaryDirectory() as scratch:
        for path in folder.glob("*.safetensors*"):
            shutil.copy(path, scratch)
        (pathlib.Path(scratch) / "config.json").write_text(json.dumps(readable(config)))
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            scratch, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    if any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        raise SystemExit(f"{folder.name}: {report}")
    return model.eval()


def random_tensors(name, config):
    """Every tensor that the class wants, seeded by the checkpoint's name, in storage precision."""
    plain = transformers.AutoConfig.for_model(**readable(config))
    with torch.device("meta"):
        shapes = transformers.AutoModelForCausalLM.from_config(plain).state_dict()
    generator = numpy.random.default_rng(zlib.crc32(name.encode()))
    tensors = {}
    for key in sorted(shapes):
        if key == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        values = generator.standard_normal(tuple(shapes[key].shape), dtype=numpy.float32)
        if key.endswith("norm.weight"):
            values = 1 + 0.2 * values
        elif key.endswith("bias"):
            values *= 0.3
        elif "embed_tokens" in key or "lm_head" in key:
            values *= 0.5
        else:  # keeps the size of what passes through, and a bit more, so that layers matter
            values *= 1.6 / numpy.sqrt(shapes[key].shape[1])
        tensors[key] = torch.from_numpy(values).to(DTYPES[config["torch_dtype"]])
    return tensors


def write_weights(folder, tensors, num_files):
    metadata = {"format": "pt"}
    if num_files == 1:
        save_file(tensors, folder / "model.safetensors", metadata=metadata)
        return
    placed, total = {}, 0
    for i in range(num_files):
        part = dict(list(tensors.items())[i::num_files])
        file = f"model-{i + 1:05}-of-{num_files:05}.safetensors"
        save_file(part, folder / file, metadata=metadata)
        placed |= {key: file for key in part}
        total += sum(t.numel() * t.element_size() for t in part.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def short(values):
    return [float(f"{float(value):.7g}") for value in values]


@torch.no_grad()
def golden(model, name, vocabulary):
    """For each prompt: the last position's logits, then greedy tokens, each from a full forward pass."""
    generator = numpy.random.default_rng(zlib.crc32(b"prompts of " + name.encode()))
    prompts = []
    for length in PROMPT_LENGTHS:
        ids = generator.integers(0, vocabulary, length).tolist()
        first = None
        greedy, logprobs, margins = [], [], []
        for _ in range(NUM_GREEDY):
            logits = model(torch.tensor([ids + greedy]), use_cache=False).logits[0, -1]
            first = logits if first is None else first
            best = logits.double().topk(2)
            greedy.append(int(best.indices[0]))
            logprobs.append(float(logits.double().log_softmax(-1)[greedy[-1]]))
            margins.append(float(best.values[0] - best.values[1]))
        prompts.append({"ids": ids, "logits": short(first), "greedy_ids": greedy,
                        "greedy_logprobs": short(logprobs), "greedy_margins": short(margins)})
    return prompts


@torch.no_grad()
def rounding(model, prompts):
    """How far float32 is from float64 on these prompts."""
    double = model.double()
    worst = 0.0
    for prompt in prompts:
        logits = double(torch.tensor([prompt["ids"]]), use_cache=False).logits[0, -1]
        worst = max(worst, float((logits - torch.tensor(prompt["logits"]).double()).abs().max()))
    return worst


def write_golden(path, prompts):
    made_with = {"transformers": transformers.__version__, "torch": torch.__version__}
    rows = ",\n".join(json.dumps(prompt) for prompt in prompts)
    path.write_text(f'{{"made_with": {json.dumps(made_with)}, "prompts": [\n{rows}\n]}}\n')


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(MODELS))
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "tests" / "data" / "models")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # one order of sums, wherever this runs
    for name in arguments.names or MODELS:
        own, num_files, spelling = MODELS[name]
        config = COMMON | own
        folder = arguments.out / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        written = spelled(config, spelling)
        (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n")
        write_weights(folder, random_tensors(name, config), num_files)
        model = load(folder, written)
        prompts = golden(model, name, config["vocab_size"])
        write_golden(folder / "golden.json", prompts)
        margins = sorted(margin for prompt in prompts for margin in prompt["greedy_margins"])
        kinds = [len(set(prompt["greedy_ids"])) for prompt in prompts]
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{name}: {size} bytes, distinct greedy tokens {kinds}, margins min {margins[0]:.2e} "
              f"5% {margins[len(margins) // 20]:.2e}, float32 - float64 {rounding(model, prompts):.1e}, "
              f"largest logit {max(map(abs, prompts[-1]['logits'])):.1f}")


if __name__ == "__main__":
    main()
