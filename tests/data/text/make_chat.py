"""Makes chat.json and chat-real.json: python make_chat.py

What transformers' apply_chat_template makes of the conversations below: the text with the templates in templates/,
and only hashes with those of real models, which are not part of this repository (looked for in $ONLAY_SHARED, else in
../shared/data beside it). Needs transformers 5.23.0 and jinja2 3.1.6; the files committed here were made with these.
"""

import datetime
import glob
import hashlib
import json
import os

import jinja2
import transformers
from transformers.utils.chat_template_utils import render_jinja_template

HERE = os.path.dirname(os.path.abspath(__file__))
SHARED = os.environ.get("ONLAY_SHARED", os.path.join(HERE, "../../../../shared/data"))
assert transformers.__version__ == "5.23.0" and jinja2.__version__ == "3.1.6"

WEATHER = {"type": "function", "function": {
    "name": "weather", "description": "The weather at a place — \"now\" & <here>",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}, "days": {"type": "integer", "default": 1.0}},
                   "required": ["place"]}}}


def say(*turns):
    return [{"role": role, "content": content} for role, content in turns]


TALKS = {
    "short": {"messages": say(("user", "Hi!"), ("assistant", "Hello, how are you?"))},
    "question": {"messages": say(("user", "What is 2 + 2?\n"))},
    "system": {"messages": say(("system", " You speak like a sailor. "), ("user", "Where are we?"), ("assistant", "At sea, mate."))},
    "long": {"messages": say(("user", "One"), ("assistant", "Two"), ("user", "Three"), ("assistant", " Four \n"),
                             ("user", "Fünf 🙂"), ("assistant", "Six\n\nand a <|half|>"))},
    "tools": {"messages": [
        {"role": "user", "content": "Is it raining in Kyōto?"},
        {"role": "assistant", "content": "", "tool_calls": [
            {"type": "function", "function": {"name": "weather", "arguments": {"place": "Kyōto", "days": 2, "exact": None, "fast": True}}}]},
        {"role": "tool", "content": "rain, 12.5 °C"},
        {"role": "assistant", "content": "Yes, it is."}], "tools": [WEATHER]},
    "thinking": {"messages": [
        {"role": "user", "content": "A riddle?"},
        {"role": "assistant", "content": "<think>\nold\n</think>\n\nAn egg."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "It has no hinges.", "reasoning_content": "The box without a lid."}]},
    "quick": {"messages": say(("user", "Now.")), "variables": {"enable_thinking": False}},
}


class Fixed(datetime.datetime):
    """1 January 1970, whatever the day."""

    @classmethod
    def now(cls, tz=None):
        return cls(1970, 1, 1)


transformers.utils.chat_template_utils.datetime = Fixed


def render(template, talk, prompt, tokens, spans=False):
    try:
        texts, marks = render_jinja_template(
            conversations=[talk["messages"]], tools=talk.get("tools"), chat_template=template, add_generation_prompt=prompt,
            return_assistant_tokens_mask=spans, **tokens, **talk.get("variables", {}))
    except jinja2.exceptions.TemplateError as e:
        return {"error": str(e).split("\n")[0]}
    except (TypeError, AttributeError) as e:
        return {"error": ""}
    return {"text": texts[0], "spans": [list(s) for s in marks[0]]} if spans else {"text": texts[0]}


TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
own = {}
for path in sorted(glob.glob(os.path.join(HERE, "templates", "*.jinja"))):
    source = open(path, encoding="utf-8").read()
    name = os.path.basename(path)[:-6]
    own[name] = {}
    for talk, what in TALKS.items():
        own[name][talk] = {
            "prompt": render(source, what, True, TOKENS),
            "whole": render(source, what, False, TOKENS, spans="{% generation %}" in source)}

real = {}
for path in sorted(glob.glob(os.path.join(SHARED, "tokenizers/config/*.json"))):
    config = json.load(open(path, encoding="utf-8"))
    if not isinstance(config.get("chat_template"), str):
        continue
    text = lambda t: t["content"] if isinstance(t, dict) else t
    tokens = {k: text(config[k]) for k in ("bos_token", "eos_token") if config.get(k)}
    rows = {}
    for talk, what in TALKS.items():
        rows[talk] = []
        for prompt in (True, False):
            made = render(config["chat_template"], what, prompt, tokens)
            rows[talk].append(hashlib.sha256(made["text"].encode()).hexdigest() if "text" in made else None)
    real[os.path.basename(path)] = rows


def write(name, table):
    rows = [json.dumps(k) + ": {\n" + ",\n".join(f"  {json.dumps(a)}: {json.dumps(b, ensure_ascii=False)}" for a, b in v.items()) + "\n}"
            for k, v in table.items()]
    with open(os.path.join(HERE, name), "w", encoding="utf-8") as f:
        f.write("{\n" + ",\n".join(rows) + "\n}\n")


write("chat.json", {"talks": TALKS, **own})
write("chat-real.json", real)
