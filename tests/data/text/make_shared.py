"""Makes shared.json: python make_shared.py

The ids that reference implementations give for strings.json with vocabularies that are not part of this repository:
they are looked for in $ONLAY_SHARED, else in ../shared/data beside it. Needs sentencepiece 0.2.3 and tokenizers
0.23.3; the ids committed here were made with these.
"""

import base64
import gzip
import json
import os
import struct

import sentencepiece as spm
import tokenizers

HERE = os.path.dirname(os.path.abspath(__file__))
SHARED = os.environ.get("ONLAY_SHARED", os.path.join(HERE, "../../../../shared/data"))
assert spm.__version__ == "0.2.3" and tokenizers.__version__ == "0.23.3"

STRINGS = json.load(open(os.path.join(HERE, "strings.json"), encoding="utf-8"))
# llm-jp 2.2 stands here in the form of the tokenizers library: sentencepiece adds scores in 32 bits, and of two
# spellings with the same tokens in another order rounding then decides.
FILES = [
    "mistral/tokenizer.model.v1",
    "mistral/tokenizer.model.v3",
    "llm-jp/llm-jp-tokenizer-100k.ver3.1.model.gz",
    "llm-jp/code10K_en20K_ja30K.ver2.2.tokenizer.json.gz",
    "sentencepiece/test_model.model",
    "sentencepiece/test_ja_model.model",
    "t5-small/tokenizer.json.gz",
    "tiny/tiny_bpe_tokenizer.json",
]



def field(number, value):
    """One field of a protocol buffer message."""
    def varint(n):
        return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def as_model(state):
    """T5's fast tokenizer as the SentencePiece model that it was made from."""
    special = {token["id"] for token in state["added_tokens"]}
    out = b""
    for i, (piece, score) in enumerate(state["model"]["vocab"]):
        kind = 2 if i == state["model"]["unk_id"] else 3 if i in special else 1
        out += field(1, field(1, piece.encode()) + field(2, float(score)) + field(3, kind))
    charsmap = base64.b64decode(state["normalizer"]["precompiled_charsmap"])
    trainer = field(3, 1) + field(40, 2) + field(41, 0xffffffffffffffff) + field(42, 1) + field(43, 0)
    return out + field(2, trainer) + field(3, field(2, charsmap))


out = {}
for name in FILES:
    data = open(os.path.join(SHARED, "tokenizers", name), "rb").read()
    if name.endswith(".gz"):
        data = gzip.decompress(data)
    if name.startswith("t5"):
        out[name] = spm.SentencePieceProcessor(model_proto=as_model(json.loads(data))).encode(STRINGS)
    elif "tokenizer.json" in name:
        t = tokenizers.Tokenizer.from_str(data.decode())
        out[name] = [t.encode(text, add_special_tokens=False).ids for text in STRINGS]
    else:
        out[name] = spm.SentencePieceProcessor(model_proto=data).encode(STRINGS)

with open(os.path.join(HERE, "shared.json"), "w", encoding="utf-8") as f:
    rows = [json.dumps(name) + ": " + json.dumps(ids, separators=(",", ":")) for name, ids in out.items()]
    f.write("{\n" + ",\n".join(rows) + "\n}\n")
