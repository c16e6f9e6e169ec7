#!/usr/bin/env python3
"""Renders the chat templates of tests/data/templates with Jinja itself and writes what came out.

Usage: make_chat_reference.py            (rewrites tests/data/templates/*.json)

Needs Jinja2 >= 3.1 (Debian: python3-jinja2). Jinja is set up exactly as Transformers does it for
`apply_chat_template`: immutable sandbox, trim_blocks, lstrip_blocks, loop controls, tojson as
json.dumps without ASCII escapes, raise_exception, strftime_now. The clock is fixed.

Inputs, all written for this test: chats.json (conversations), *.jinja (templates in the styles that
checkpoints use), snippets.txt (small templates, separated by lines of three dashes).
Outputs: rendered.json and snippets.json, lists of {"template", "chat", "text"} or {..., "error"}.
"""

import datetime
import json
import pathlib

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data" / "templates"
NOW = datetime.datetime(2026, 3, 9, 14, 5, 6)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


class IgnoreGeneration(jinja2.ext.Extension):
    """{% generation %} marks what the assistant wrote; rendering is not changed by it."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        call = self.call_method("_body")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                          sort_keys=sort_keys)

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True,
        extensions=[IgnoreGeneration, jinja2.ext.loopcontrols])
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = NOW.strftime
    return made


def render(source, variables):
    try:
        return {"text": environment().from_string(source).render(**variables)}
    except Exception as error:  # whatever Python raises is an error of the template
        return {"error": f"{type(error).__name__}: {error}"}


def dump(path, rows):
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def main():
    chats = json.loads((FOLDER / "chats.json").read_text(encoding="utf-8"))
    rendered = []
    for path in sorted(FOLDER.glob("*.jinja")):
        source = path.read_text(encoding="utf-8")
        for name, chat in chats.items():
            for prompt in (False, True):
                variables = {"messages": chat["messages"], "tools": chat.get("tools"),
                             "documents": chat.get("documents"), "add_generation_prompt": prompt,
                             **TOKENS, **chat.get("extra", {})}
                rendered.append({"template": path.name, "chat": name, "prompt": prompt,
                                 **render(source, variables)})
    dump(FOLDER / "rendered.json", rendered)

    values = chats["values"]
    snippets = []
    for source in (FOLDER / "snippets.txt").read_text(encoding="utf-8").split("\n---\n"):
        variables = {"messages": values["messages"], "tools": None, "documents": None,
                     "add_generation_prompt": True, **TOKENS, **values["extra"]}
        snippets.append({"template": source, **render(source, variables)})
    dump(FOLDER / "snippets.json", snippets)
    print(f"{len(rendered)} chats, {len(snippets)} snippets")


if __name__ == "__main__":
    main()
