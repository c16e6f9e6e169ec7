#!/usr/bin/env python3
"""Makes the tokenizers and token ids that tests/coordinator/text_reference_test.cc compares with.

Needs the packages `tokenizers` and `transformers` (no torch): the results are theirs.

  make_tokenizer_reference.py           encode again, with the tokenizers in tests/data/tokenizer
  make_tokenizer_reference.py --train   train these first (another Python's library gives others)

Each style copies how a family of checkpoints sets up its tokenizer.json; the vocabularies are
small and trained here.
"""

import argparse
import json
import random
import sys
from pathlib import Path

import tokenizers
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data" / "tokenizer"
DEMO = ROOT / "deploy" / "demo-model"
SEED = 17
VOCABULARY_SIZE = 1200
LIBRARY = [
    "heapq",
    "textwrap",
    "string",
    "colorsys",
    "bisect",
    "fnmatch",
    "json.decoder",
    "calendar",
]

PROSE = """
The quick brown fox doesn't jump; it'll wait, they've said, and we're sure it's 12345 steps away.
I'd think so, I'M SURE.
Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.
Où est l'été ? Él está aquí, mañana también.
Съешь же ещё этих мягких французских булок, да выпей чаю. Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.
天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。我们今天去北京学习编程。いろはにほへと ちりぬるを カタカナもあります。
다람쥐 헌 쳇바퀴에 타고파. 안녕하세요 세계. صِف خَلقَ خَودٍ كَمِثلِ الشَمسِ إِذ بَزَغَت. דג סקרן שט בים מאוכזב.
ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश करने वाले.
เป็นมนุษย์สุดประเสริฐเลิศคุณค่า
"""

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK_V3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CJK = "[一-龥぀-ゟ゠-ヿ]+"


def corpus():
    texts = [PROSE] * 8
    for name in LIBRARY:
        module = __import__(name, fromlist=["_"])
        texts.append(Path(module.__file__).read_text(encoding="utf-8"))
    return texts


def split(pattern):
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False)


def bytes_only():
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def train(pre_tokenizer, normalizer=None, specials_first=(), **model_options):
    tokenizer = Tokenizer(models.BPE(**model_options))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(specials_first),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def special(content, **options):
    return AddedToken(content, special=True, normalized=False, **options)


def plain(content, **options):
    return AddedToken(content, special=False, **{"normalized": False, **options})


def make_gpt2():
    t = train(pre_tokenizers.ByteLevel(add_prefix_space=False), specials_first=["<|endoftext|>"])
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    return t, {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}


def make_flags():
    """Added tokens with each flag, and a space put before each text."""
    t = train(pre_tokenizers.ByteLevel(add_prefix_space=True), normalizers.NFC())
    t.add_special_tokens(
        [
            special("<mask>", lstrip=True),
            special("<end>", rstrip=True),
            special("<both>", lstrip=True, rstrip=True),
        ]
    )
    t.add_tokens(
        [
            plain("word", single_word=True),
            plain("  "),
            plain("    "),
            plain("é", normalized=True),
            plain("Ångström", normalized=True),
            plain("<x>"),
            plain("<x><y>"),
            plain("<x><y><z>"),
        ]
    )
    t.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])
    return t, {
        "eos_token": {"__type": "AddedToken", "content": "<end>", "rstrip": True, "special": True}
    }


def make_llama3():
    t = train(pre_tokenizers.Sequence([split(LLAMA3), bytes_only()]), ignore_merges=True)
    t.add_special_tokens(
        [
            special(s)
            for s in (
                "<|begin_of_text|>",
                "<|end_of_text|>",
                "<|start_header_id|>",
                "<|end_header_id|>",
                "<|eot_id|>",
            )
        ]
    )
    begin = ("<|begin_of_text|>", t.token_to_id("<|begin_of_text|>"))
    t.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<|begin_of_text|> $A",
                pair="<|begin_of_text|> $A $B:1",
                special_tokens=[begin],
            ),
        ]
    )
    return t, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}


def make_qwen2():
    t = train(
        pre_tokenizers.Sequence([split(QWEN2), bytes_only()]),
        normalizers.NFC(),
        continuing_subword_prefix="",
        end_of_word_suffix="",
    )
    t.add_special_tokens([special(s) for s in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    t.add_tokens([plain("<tool_call>"), plain("</tool_call>"), plain("<think>"), plain("</think>")])
    # Named in tokenizer_config.json only.
    return t, {
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "bos_token": None,
        "extra_special_tokens": ["<|vision_pad|>"],
    }


def make_deepseek_coder():
    steps = [split(p) for p in ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")]
    steps += [pre_tokenizers.Digits(individual_digits=True), bytes_only()]
    t = train(pre_tokenizers.Sequence(steps), normalizers.Sequence([]))
    t.add_tokens([plain(c, normalized=True) for c in "õ÷Áý"])
    t.add_tokens([plain("<｜fim▁hole｜>", normalized=True), plain("<｜User｜>", normalized=True)])
    t.add_special_tokens(
        [
            AddedToken(s, special=True, normalized=True)
            for s in ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<|EOT|>")
        ]
    )
    begin = "<｜begin▁of▁sentence｜>"
    t.post_processor = processors.TemplateProcessing(
        single=begin + " $A",
        pair=f"{begin} $A {begin}:1 $B:1",
        special_tokens=[(begin, t.token_to_id(begin))],
    )
    return t, {"bos_token": begin, "eos_token": "<|EOT|>"}


STYLES = {
    "gpt2": make_gpt2,
    "flags": make_flags,
    "llama3": make_llama3,
    "qwen2": make_qwen2,
    "deepseek_coder": make_deepseek_coder,
}


def write_json(path, value, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(value, ensure_ascii=False, separators=(",", ":"), **options) + "\n",
        encoding="utf-8",
    )


def train_all():
    for name, make in STYLES.items():
        tokenizer, config = make()
        value = json.loads(tokenizer.to_str())
        if name == "gpt2":  # the old spelling of merges
            value["model"]["merges"] = [" ".join(merge) for merge in value["model"]["merges"]]
        write_json(DATA / name / "tokenizer.json", value)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **config,
        }
        write_json(DATA / name / "tokenizer_config.json", config)


# fmt: off
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|begin_of_text|>",
            "<|EOT|>", "<think>",
            "</think>", "<tool_call>", "<mask>", "<end>", "<both>", "word", "<x>", "<x><y>",
            "<x><y><z>", "<｜User｜>",
            "<｜fim▁hole｜>", "<|vision_pad|>", "<｜begin▁of▁sentence｜>", "õ", "÷", "é", "e\u0301",
            "Ångström", "  ", "    "]

FIXED = [
    "", " ", "  ", "\n", "\r\n", "\t", "a", "Hello, world!", " Hello", "Hello ", "don't",
    "DON'T I'LL we'Ve", "it'ſ",
    "1", "12", "123", "1234", "12345678901234567890", "3.14159", "1,000,000", "٣٤٥", "Ⅷ", "½", "x²",
    "def f(x):\n    return x + 1\n", "if (a == b) {\r\n\treturn c;\r\n}\r\n",
    "for i in range(10):\n\n\n    pass",
    "#include <vector>\nint main() { return 0; }\n", "a_b-c.d/e\\f",
    "x = {'a': [1, 2, 3], \"b\": None}",
    "SELECT * FROM t WHERE a >= 10 AND b <> 'x';", "<html><body class=\"x\">&amp;</body></html>",
    "http://a.b/c?d=e&f=g#h",
    "    four\n        eight\n\ttab\n  \n", "trailing   \n   leading", "a\n\n\n\nb",
    "a\r\r\nb\n\rc", " \n \n ", "\n ", " \n",
    "\u00a0nbsp\u00a0", "a\u2003b\u2028c\u2029d", "zero\u200bwidth\u200djoin\ufeff",
    "mongolian\u180evowel", "\u0085next",
    "\x00\x01\x1f\x7f", "a\x0bb\x0cc", "héllo wörld", "e\u0301te\u0301", "A\u030angstro\u0308m",
    "\u212b \u2126",
    "q\u0307\u0323 q\u0323\u0307", "\u0301start", "a\u0301\u0302\u0303\u0304",
    "\u1100\u1161\u11a8", "각 한글", "ﬁ ﬂ ﬀ", "ｆｕｌｌ",
    "你好，世界！", "日本語のテキスト、カタカナ。", "混合mixed中文123", "안녕하세요 세계", "Привет, мир!", "Γειά σου Κόσμε",
    "مرحبا بالعالم",
    "שלום עולם", "नमस्ते दुनिया", "สวัสดีชาวโลก", "வணக்கம்", "გამარჯობა", "Բարեւ", "ሰላም", "😀",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪", "👍🏽 ok",
    "a😀b😀", "𝒳𝓎 𐍈 𠀀", "\U0010ffff \ue000", "…—–“”‘’", "¿Qué? ¡Sí!", "$€£¥₿", "√2 ≈ 1.414 ∑∫",
    "→⇒↔", "```python\nx\n```",
    "- [ ] task\n- [x] done\n1. one\n", "| a | b |\n|---|---|\n", "\"\"\"doc\"\"\"", "'''x'''",
    "!!!???...", "(((([[[[{{{{", "-----",
    "==== ===", "a" * 300, "A" * 97, " " * 300, "\n" * 120, "\t" * 65, "1" * 200, "." * 150,
    "ab" * 150, " a" * 100, "é" * 70,
    "中" * 70, "😀" * 30, "\u0301" * 60, "aaaa    aaaa\n\n\naaaa", "x" + " " * 77 + "y", "\r\n" * 30,
    "foo" + "\n" * 9 + " bar",
    "password wordy word word. sword word", "a<mask>b", "a <mask> b", "a\n <mask>\t b",
    "a <end> \n b", "a <both> b", "<both> <both>",
    "<x><y><z>", "<x><y>z", "<x> <y>", "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|", "<|<|im_end|>|>",
    "<|im_end|><|im_end|>", " <|im_end|> ", "x<|eot_id|>y<|begin_of_text|>",
    "<think>\nhm\n</think>\n\nyes", "<｜User｜>hi<|EOT|>",
    "<｜begin▁of▁sentence｜><｜fim▁hole｜>", "õ÷Áý á", "caf\u00e9 cafe\u0301",
    "A\u030angstro\u0308m Ångström", "<|vision_pad|>x",
    "\u0627\u0644\u0652 \u0651\u0650", "\u0f73\u0f71", "a\u0323\u0307\u0301", "i\u0307 İ ı ſ ß ẞ",
    "\u0958 \u0928\u093c", "\ufb1d \u2adc",
]
# fmt: on


def words(rng):
    pool = [
        "def",
        "class",
        "return",
        "import",
        "self",
        "the",
        "and",
        "Straße",
        "naïve",
        "сло́во",
        "字",
        "漢字",
        "한국",
        "ลอง",
        "हिन्दी",
        "0",
        "42",
        "2024",
        "1e-5",
        "'s",
        "'LL",
        "...",
        "->",
        "!=",
        "{}",
        "();",
        "://",
        "\\n",
        "😀",
        "👨‍👩‍👧",
        "e\u0301",
        "\u200b",
        "_",
        "#",
    ]
    gaps = [
        "",
        "",
        " ",
        " ",
        " ",
        "  ",
        "    ",
        "\n",
        "\n\n",
        "\r\n",
        "\t",
        " \n",
        "\n    ",
        "\u00a0",
        "\u3000",
    ]
    return "".join(
        rng.choice(pool + SPECIALS * (rng.random() < 0.3)) + rng.choice(gaps)
        for _ in range(rng.randint(1, 14))
    )


def characters(rng):
    ranges = [
        (0x20, 0x7E),
        (0x20, 0x7E),
        (0x09, 0x0D),
        (0xA0, 0x24F),
        (0x300, 0x36F),
        (0x370, 0x52F),
        (0x5D0, 0x6FF),
        (0x900, 0xDFF),
        (0xE00, 0xFFF),
        (0x1100, 0x11FF),
        (0x1E00, 0x1FFF),
        (0x2000, 0x22FF),
        (0x3040, 0x30FF),
        (0x4E00, 0x4FFF),
        (0xAC00, 0xACFF),
        (0xFF00, 0xFF5E),
        (0x1F300, 0x1F64F),
        (0x1D400, 0x1D4FF),
    ]
    return "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(1, 24)))


def texts():
    rng = random.Random(SEED)
    return FIXED + [words(rng) for _ in range(120)] + [characters(rng) for _ in range(80)]


def encode(backend, text, as_plain=False):
    backend.encode_special_tokens = as_plain
    return backend.encode(text, add_special_tokens=not as_plain).ids


def reference(directory, all_texts):
    """Ids of each text as a prompt, and as plain text where that differs; texts of random ids."""
    auto = transformers.PreTrainedTokenizerFast.from_pretrained(directory)
    backend = auto.backend_tokenizer
    rng = random.Random(SEED)
    result = {"ids": [], "plain": {}, "decoded": []}
    for i, text in enumerate(all_texts):
        ids = auto(text)["input_ids"]
        assert ids == encode(backend, text)
        result["ids"].append(ids)
        as_plain = encode(backend, text, as_plain=True)
        backend.encode_special_tokens = False
        if as_plain != auto(text, add_special_tokens=False)["input_ids"]:
            result["plain"][str(i)] = as_plain
    size = len(auto)
    for i in range(80):
        ids = [rng.randrange(min(size, 300) if i % 2 else size) for _ in range(rng.randint(1, 20))]
        result["decoded"].append(
            [
                ids,
                auto.decode(ids, skip_special_tokens=False),
                auto.decode(ids, skip_special_tokens=True),
            ]
        )
    return result


def variants():
    """Parts of a tokenizer.json put into the gpt2 one, so that each behaviour is seen once."""

    def step(pattern, behavior, invert=False):
        return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}

    def sequence(*steps):
        last = {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": False,
        }
        return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, last]}}

    result = []
    for behavior in ("Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
        for invert in (False, True):
            result.append(sequence(step({"Regex": r"\s"}, behavior, invert)))
            result.append(sequence(step({"String": "a"}, behavior, invert)))
    result += [
        sequence(step({"Regex": p}, "Isolated"))
        for p in (
            GPT4O,
            QWEN2,
            r"^\s*",
            r"x*",
            r"(?<=e)[a-z]|\d+$",
            r"[^\S\r\n]+",
            r"[\p{Lu}\x{4e00}-\u9fff]",
            r"\v|\t",
        )
    ]
    result.append(
        sequence(
            step({"Regex": r"\p{N}{1,3}"}, "Isolated"),
            step({"Regex": CJK}, "Isolated"),
            step({"Regex": DEEPSEEK_V3}, "Isolated"),
        )
    )
    result += [
        sequence({"type": "Digits", "individual_digits": single}) for single in (False, True)
    ]
    prefixed = {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": True,
        "use_regex": True,
    }
    result.append(
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [step({"Regex": r"\n"}, "Removed"), prefixed],
            }
        }
    )
    result += [{"normalizer": {"type": form}} for form in ("NFC", "NFD", "NFKC", "NFKD")]
    result.append(
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKD"}, {"type": "NFC"}]}}
    )
    return result


def variant_references(all_texts):
    base = json.loads((DATA / "gpt2" / "tokenizer.json").read_text(encoding="utf-8"))
    result = []
    for patch in variants():
        tokenizer = Tokenizer.from_str(json.dumps({**base, **patch}))
        ids = [encode(tokenizer, text) for text in all_texts]
        result.append({"patch": patch, "ids": ids})
    return result


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", action="store_true", help="train the tokenizers anew")
    if parser.parse_args().train:
        train_all()
    all_texts = texts()
    write_json(DATA / "texts.json", all_texts)
    for name in STYLES:
        write_json(DATA / name / "reference.json", reference(DATA / name, all_texts))
    write_json(DATA / "demo_model_reference.json", reference(DEMO, all_texts))
    write_json(DATA / "variants.json", variant_references(all_texts[::3]))
    write_json(
        DATA / "made_with.json",
        {
            "python": sys.version.split()[0],
            "tokenizers": tokenizers.__version__,
            "transformers": transformers.__version__,
            "seed": SEED,
        },
    )


if __name__ == "__main__":
    main()
