#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Chat templates' expected output, by transformers (>= 5, with jinja2 3.1.6): every template folder times every conversation.

  python3 make_chat.py                       # folders of chat/ -> chat/golden.json
  python3 make_chat.py --out FILE DIR...     # other model folders -> FILE, which test_chat_template takes as its argument

golden.json: {"chats", "tools", "extras", "cases": [{"folder", "renders": [[chat, with tools, extra, prompt, text, error]]}]}.
"folder" is relative to the file, or absolute. Where text is null, error is the message that the template raised, or "".
Time stands still at NOW; the test's clock says the same, in UTC."""
import argparse
import datetime
import inspect
import json
import os

import jinja2
import transformers
from transformers.utils import chat_template_utils

NOW = 1753617600  # 2025-07-27 12:00:00 UTC
TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Weather of a \"city\" <now>, in °C & more", "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "description": "It's the city"},
                                         "days": {"type": "integer", "enum": [1, 2, 3], "default": None},
                                         "where": {"type": ["string", "null"]}, "deep": {"type": "array", "items": {"type": "number", "minimum": -1.5e-7}}},
        "required": ["city"]}}}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "Time 时间", "parameters": {"type": "object", "properties": {}}, "strict": True}}
CALL = {"id": "call12345", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 2}}}
CALL_TEXT = {"id": "abcdef789", "type": "function", "function": {"name": "clock", "arguments": "{\"zone\": \"UTC\"}"}}


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


CHATS = {
    "hello": [turn("user", "Hello")],
    "blank": [turn("user", "  \n\t Hi  \n")],
    "system": [turn("system", " You are terse.\n"), turn("user", "Hi"), turn("assistant", " Hello! "), turn("user", "Bye\n\n")],
    "unicode": [turn("user", "naïve 中文 🙂\u00a0\u2028 e\u0301 \\n {{ x }} <|im_end|> \"q\" 'p'")],
    "long": [turn("system", "S")] + [turn(("user", "assistant")[i % 2], f"m{i}") for i in range(9)],
    "assistant_last": [turn("user", "a"), turn("assistant", "b")],
    "thinking": [turn("user", "2+2?"), turn("assistant", "<think>\nAdd.\n</think>\n\n4"), turn("user", "And 3+3?"),
                 turn("assistant", "6", reasoning_content="Add again."), turn("user", "Thanks"), turn("assistant", "<think>x</think>You're welcome")],
    "reasoning": [turn("user", "q"), turn("assistant", "a", reasoning="because"), turn("user", "r")],
    "tool_turns": [turn("system", "Use tools."), turn("user", "Weather?"), turn("assistant", "", tool_calls=[CALL]),
                   turn("tool", "{\"t\": 21.5}", tool_call_id="call12345"), turn("assistant", "21.5 degrees."), turn("user", "Time?"),
                   turn("assistant", "Let me look.", tool_calls=[CALL_TEXT, CALL]), turn("tool", "12:00", tool_call_id="abcdef789"),
                   turn("tool", "rain", tool_call_id="call12345")],
    "null_content": [turn("user", "Weather?"), turn("assistant", None, tool_calls=[CALL]), turn("tool", "ok", tool_call_id="call12345", name="get_weather")],
    "parts": [turn("user", [{"type": "text", "text": "one"}, {"type": "text", "text": " two"}])],
    "system_parts": [turn("system", [{"type": "text", "text": "sys"}]), turn("user", [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "see"}])],
    "roles": [turn("user", "a"), turn("user", "b")],
    "assistant_first": [turn("assistant", "a"), turn("user", "b")],
    "system_alone": [turn("system", "s")],
    "system_late": [turn("user", "a"), turn("system", "late"), turn("user", "b")],
    "strange_role": [turn("narrator", "Once")],
    "no_content": [{"role": "user"}],
    "numbers": [turn("user", 3)],
    "odd_values": [turn("user", "v", score=1.0, rank=-7, big=12345678901234567, tiny=1e-7, huge=1.5e300, third=1 / 3, flag=True, list=[1, "a", None, 2.5, {"k": []}], empty={}, name="it's \"x\"\n\x07é\u200b😀")],
}
TOOLS = [WEATHER, CLOCK]
EXTRAS = [None, {"enable_thinking": False}, {"enable_thinking": True, "date_string": "1 Jan 2030", "bos_token": "<BOS>"}, {"tools_in_user_message": False, "n": 3, "documents": [{"title": "T", "text": "D"}], "controls": {"citations": True}},
          {"builtin_tools": ["code_interpreter", "brave_search"], "thinking": True, "items": {"b": 1, "A": [2, {"c": None}]}}]


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(NOW, datetime.timezone.utc).replace(tzinfo=None)


def load(folder):
    """The templates by name and the special tokens, as a tokenizer of that folder would have them."""
    config, tokens = {}, {}
    path = os.path.join(folder, "tokenizer_config.json")
    if os.path.exists(path):
        with open(path, encoding="utf-8") as f:
            kind = getattr(transformers, json.load(f).get("tokenizer_class", ""), None)
        if kind:
            defaults = inspect.signature(kind.__init__).parameters
            config.update({n: str(defaults[n].default) for n in TOKENS if n in defaults and defaults[n].default is not None})
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = os.path.join(folder, name)
        if os.path.exists(path):
            with open(path, encoding="utf-8") as f:
                config.update(json.load(f))
    for name in TOKENS:
        v = config.get(name)
        v = v["content"] if isinstance(v, dict) else v
        if v is not None:
            tokens[name] = v
    template = config.get("chat_template")
    path = os.path.join(folder, "chat_template.jinja")
    if os.path.exists(path):
        with open(path, encoding="utf-8") as f:
            template = f.read()
    if isinstance(template, list):
        template = {t["name"]: t["template"] for t in template}
    return template if isinstance(template, dict) else {"default": template}, tokens


def render(templates, tokens, messages, tools, extra, prompt):
    """What apply_chat_template(tokenize=False) does, without needing the tokenizer itself."""
    template = templates["tool_use"] if tools is not None and "tool_use" in templates else templates["default"]
    messages = [{k: v for k, v in m.items() if v is not None} for m in messages]
    extra = dict(extra or {})
    documents = extra.pop("documents", None)
    try:
        rendered, _ = chat_template_utils.render_jinja_template(
            conversations=[messages], tools=tools, documents=documents, chat_template=template, add_generation_prompt=prompt, **{**tokens, **extra})
        return {"text": rendered[0]}
    except (jinja2.exceptions.UndefinedError, jinja2.exceptions.SecurityError, TypeError, ValueError, KeyError, OverflowError, ZeroDivisionError, RecursionError):
        return {"error": ""}
    except jinja2.exceptions.TemplateError as e:
        return {"error": e.message}


def main():
    here = os.path.join(os.path.dirname(os.path.abspath(__file__)), "chat")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default=os.path.join(here, "golden.json"))
    parser.add_argument("folders", nargs="*", metavar="DIR")
    args = parser.parse_args()
    chat_template_utils.datetime = Clock
    folders = [os.path.abspath(f) for f in args.folders] or sorted(os.path.join(here, f) for f in os.listdir(here) if os.path.isdir(os.path.join(here, f)))
    cases, n, n_errors = [], 0, 0
    for folder in folders:
        templates, tokens = load(folder)
        renders = []
        for i, (name, messages) in enumerate(CHATS.items()):
            for k, extra in enumerate(EXTRAS):
                for tools in (None, TOOLS):
                    # Small files: the first conversations meet everything, the others one combination each.
                    if not args.folders and i > 2 and (i + k) % len(EXTRAS) != 0:
                        continue
                    prompt = (i + k + (tools is None)) % 2 == 0
                    result = render(templates, tokens, messages, tools, extra, prompt)
                    n, n_errors = n + 1, n_errors + ("error" in result)
                    renders.append([name, tools is not None, k, prompt, result.get("text"), result.get("error")])
        cases.append({"folder": os.path.relpath(folder, here) if not args.folders else folder, "renders": renders})
    with open(args.out, "w", encoding="utf-8") as f:
        json.dump({"chats": CHATS, "tools": TOOLS, "extras": EXTRAS, "cases": cases}, f, ensure_ascii=False, indent=0)
        f.write("\n")
    print(f"{len(cases)} templates, {n} renderings, {n_errors} of them errors")


if __name__ == "__main__":
    main()
