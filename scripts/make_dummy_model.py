#!/usr/bin/env python3
"""A folder that `serve --load-format dummy` takes: a shape's config.json with another model's tokenizer, filled up to its vocabulary.

    python3 scripts/make_dummy_model.py SHAPE_DIR TOKENIZER_DIR OUT_DIR

Weights are made up where it is served, and draw any token: each has to have a text, or streams would stand still in between.
"""

import json
import pathlib
import shutil
import sys


def make_dummy_model(shape, tokenizer, out):
    """out: made if it is not there. Raises OSError, ValueError or KeyError for what is not as expected."""
    shape, tokenizer, out = map(pathlib.Path, (shape, tokenizer, out))
    out.mkdir(exist_ok=True)
    shutil.copy(shape / "config.json", out)
    size = json.loads((shape / "config.json").read_text())["vocab_size"]
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        if (tokenizer / name).exists():
            shutil.copy(tokenizer / name, out)
    text = json.loads((tokenizer / "tokenizer.json").read_text())
    vocabulary = text["model"]["vocab"]
    taken = set(vocabulary.values()) | {token["id"] for token in text["added_tokens"]}
    vocabulary.update({f"\u0120w{token}": token for token in range(size) if token not in taken})  # U+0120: a space before it
    (out / "tokenizer.json").write_text(json.dumps(text))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    make_dummy_model(*sys.argv[1:])
