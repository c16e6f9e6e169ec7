#!/usr/bin/env python3
"""Talks to a running server with OpenAI's own Python client and checks what comes back.

    python3 scripts/check_openai_client.py [http://127.0.0.1:8000/v1] [--api-key KEY]

Needs the package `openai` and exits 77 (skipped) with a line that says so where it is missing.
"""

import argparse
import sys

try:
    import openai
except ImportError:
    print("skipped: the package 'openai' is not installed")
    sys.exit(77)


def check(condition, what):
    if not condition:
        raise SystemExit(f"failed: {what}")
    print(f"ok: {what}")


def check_models(client):
    models = client.models.list().data
    check(models and models[0].max_model_len > 0, "models are listed with their length")
    check(client.models.retrieve(models[0].id).id == models[0].id, "a model is found by its name")
    return models[0].id


def check_completions(client, model):
    prompt = "def fibonacci(n):\n"
    whole = client.completions.create(model=model, prompt=prompt, max_tokens=8, temperature=0, logprobs=2)
    choice = whole.choices[0]
    check(whole.object == "text_completion" and choice.finish_reason in ("stop", "length"), "a completion is answered")
    check(whole.usage.completion_tokens == len(choice.logprobs.tokens), "each token has its log-probability")
    stream = client.completions.create(model=model, prompt=prompt, max_tokens=8, temperature=0, stream=True,
                                       stream_options={"include_usage": True})
    chunks = list(stream)
    check("".join(c.choices[0].text for c in chunks if c.choices) == choice.text, "a stream says the same text")
    check(chunks[-1].usage.total_tokens == whole.usage.total_tokens, "the last chunk brings the usage")
    several = client.completions.create(model=model, prompt=["a", "b"], n=2, max_tokens=2, seed=1)
    check([c.index for c in several.choices] == [0, 1, 2, 3], "two prompts with two choices are four")
    scored = client.completions.create(model=model, prompt=prompt, max_tokens=0, echo=True, logprobs=1)
    logprobs = scored.choices[0].logprobs
    check(scored.choices[0].text == prompt and logprobs.token_logprobs[0] is None
          and all(value <= 0 for value in logprobs.token_logprobs[1:]), "an echoed prompt is scored")


def check_chat(client, model):
    messages = [{"role": "user", "content": "Say hello."}]
    whole = client.chat.completions.create(model=model, messages=messages, max_completion_tokens=8, temperature=0,
                                           logprobs=True, top_logprobs=2)
    choice = whole.choices[0]
    check(choice.message.role == "assistant" and isinstance(choice.message.content, str), "a chat is answered")
    check(len(choice.logprobs.content[0].top_logprobs) == 2, "a chat's tokens have their alternatives")
    chunks = list(client.chat.completions.create(model=model, messages=messages, max_completion_tokens=8,
                                                 temperature=0, stream=True))
    check(chunks[0].choices[0].delta.role == "assistant", "a chat's stream begins with the role")
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    check(text == choice.message.content, "a chat's stream says the same text")


def expect(kind, what, call):
    try:
        call()
    except kind as error:
        check(error.status_code >= 400, f"{what} ({error.status_code}, param {error.param})")
        return error
    raise SystemExit(f"failed: {what}: nothing was raised")


def check_errors(client, model):
    error = expect(openai.BadRequestError, "a bad value is refused",
                   lambda: client.completions.create(model=model, prompt="a", temperature=-1))
    check(error.param == "temperature", "the refusal names the field")
    expect(openai.NotFoundError, "another model is not found",
           lambda: client.completions.create(model="no-such-model", prompt="a"))
    expect(openai.BadRequestError, "an unsupported field is refused",
           lambda: client.completions.create(model=model, prompt="a", suffix="b"))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base_url", nargs="?", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--api-key", default="none")
    arguments = parser.parse_args()
    client = openai.OpenAI(base_url=arguments.base_url, api_key=arguments.api_key, max_retries=0, timeout=60)
    model = check_models(client)
    check_completions(client, model)
    check_chat(client, model)
    check_errors(client, model)
    print(f"all good with openai {openai.__version__}")


if __name__ == "__main__":
    main()
