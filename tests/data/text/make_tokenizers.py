"""Makes the tokenizer vectors in this folder: python make_tokenizers.py

Needs sentencepiece 0.2.3 and tokenizers 0.23.3; the vectors committed here were made with these. The
vocabularies are trained on paragraphs.txt, which was written for this purpose.
"""

import base64
import io
import json
import os

import sentencepiece as spm
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

HERE = os.path.dirname(os.path.abspath(__file__))
assert spm.__version__ == "0.2.3" and tokenizers.__version__ == "0.23.3"

PARAGRAPHS = open(os.path.join(HERE, "paragraphs.txt"), encoding="utf-8").read().splitlines()
STRINGS = json.load(open(os.path.join(HERE, "strings.json"), encoding="utf-8"))
TEXTS = STRINGS + PARAGRAPHS + ["\n".join(PARAGRAPHS[8:12]) + "\n"]


def write(name, value):
    """One line per row of the outermost lists, so that changes can be read."""
    def text(v, depth):
        if depth > 0 and isinstance(v, dict):
            rows = [json.dumps(k) + ": " + text(x, depth - 1) for k, x in v.items()]
            return "{\n" + ",\n".join(rows) + "\n}"
        if depth > 0 and isinstance(v, list) and v and isinstance(v[0], (dict, list)):
            return "[\n" + ",\n".join(text(x, 0) for x in v) + "\n]"
        return json.dumps(v, ensure_ascii=False, separators=(",", ":"))
    with open(os.path.join(HERE, name), "w", encoding="utf-8") as f:
        f.write(text(value, 2) + "\n")


# --- where the pre-tokenizers cut: the expressions in the models' own tokenizer.json files ---

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UP, LOW = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def words(digits, short=SHORT + "|", letters=r"\p{L}", other=r"[^\s\p{L}\p{N}]+[\r\n]*"):
    return (short + r"[^\r\n\p{L}\p{N}]?" + letters + r"+|\p{N}" + digits + r"| ?" + other
            + r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def cased(digits, short):
    lead = r"[^\r\n\p{L}\p{N}]?"
    return (lead + UP + "*" + LOW + "+" + short + "|" + lead + UP + "+" + LOW + "*" + short + r"|\p{N}" + digits
            + r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


CASED_LETTERS = ("A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-"
                 "\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗ"
                 "Ａ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃")
IDEOGRAPHS = "[一-龥ࠀ-一가-퟿]+"
RULES = {
    "default": [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
    "gpt-2": [GPT2],
    "starcoder": [r"\p{N}", GPT2],
    "falcon": [r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"],
    "llama-bpe": [words("{1,3}")],
    "qwen2": [words("")],
    "qwen35": [words("", letters=r"[\p{L}\p{M}]", other=r"[^\s\p{L}\p{M}\p{N}]+[\r\n]*")],
    "seed-coder": [words("", other=r"[^\s\p{L}\p{N}\r\n]+")],
    "ufakzeka": [words("", short="")],
    "minicpm5": [r"\p{N}{1,3}", words("+")],
    "laguna": [r"[^\n]+|[\n]+", words("")],
    "deepseek-llm": [r"[\r\n]", r"\s?[" + CASED_LETTERS + "]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", IDEOGRAPHS, r"\p{N}+"],
    "deepseek-coder": [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", IDEOGRAPHS, r"\p{N}"],
    "deepseek-v3": [
        r"\p{N}{1,3}", "[一-龥\u3040-\u309f\u30a0-\u30ff]+",
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"""
        r"""\s*[\r\n]+|\s+(?!\S)|\s+"""],
    "tekken": [cased("", "")],
    "gpt-4o": [cased("{1,3}", SHORT + "?")],
    "bloom": [r" ?[^(\s|[.,!?…。，、।۔،])]+"],
    "viking": [r" ?[^(\s|[.,!?…。，、।۔،])]+", r"\p{N}"],
    "chameleon": [r"<sentinel:[0-9]+>", r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", r"([\t\n]|    |  )", r"\p{N}",
                  r"[\p{P}!-/:-@\[-`{-~]", GPT2],
}


def splits():
    table = {}
    for name, stages in RULES.items():
        cut = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r), "isolated") for r in stages])
        table[name] = [[len(piece) for piece, _ in cut.pre_tokenize_str(text)] for text in TEXTS]
    write("splits.json", {"texts": [[t] for t in TEXTS], **table})


# --- SentencePiece ---

# The kinds of pieces have the same numbers there as in GGUF.

def train(**options):
    out = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(PARAGRAPHS), model_writer=out, minloglevel=2, num_threads=1,
        hard_vocab_limit=False, **options)
    return out.getvalue()


def varint(data, at):
    value = shift = 0
    while True:
        b = data[at]
        at += 1
        value |= (b & 127) << shift
        shift += 7
        if b < 128:
            return value, at


def fields(data):
    """The fields of a protocol buffer message."""
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = varint(data, at)
        elif kind == 2:
            n, at = varint(data, at)
            value, at = data[at:at + n], at + n
        else:
            n = 4 if kind == 5 else 8
            value, at = data[at:at + n], at + n
        yield tag >> 3, value


def with_unused(model):
    """The model with every third longer piece marked as unused."""
    out, count = b"", 0
    for number, value in fields(model):
        if number != 1:
            continue
        piece = dict(fields(value))
        count += 1
        if piece.get(3, 1) == 1 and len(piece[1].decode()) > 1 and count % 3 == 0:
            value += b"\x18\x05"
        length = bytes([len(value)]) if len(value) < 128 else bytes([len(value) & 127 | 128, len(value) >> 7])
        out += b"\x0a" + length + value
    # What is not a piece comes after the pieces, unchanged.
    at = 0
    while model[at] == 0x0a:
        n, start = varint(model, at + 1)
        at = start + n
    return out + model[at:]


def sentencepiece(name, unused=False, **options):
    model = train(**options)
    if unused:
        model = with_unused(model)
    sp = spm.SentencePieceProcessor(model_proto=model)
    pieces = [sp.id_to_piece(i) for i in range(len(sp))]
    kinds = [dict(fields(value)).get(3, 1) for number, value in fields(model) if number == 1]
    charsmap = b""
    for number, value in fields(model):
        if number == 3:
            charsmap = dict(fields(value)).get(2, b"")
    vocabulary = {
        "model": "llama" if options["model_type"] == "bpe" else "t5",
        "tokens": pieces,
        "scores": [sp.get_score(i) for i in range(len(sp))],
        "kinds": kinds,
        "bos": sp.bos_id(), "eos": sp.eos_id(), "unk": sp.unk_id(),
        "add_space_prefix": True,
        "remove_extra_whitespaces": options.get("remove_extra_whitespaces", True),
        "charsmap": base64.b64encode(charsmap).decode(),
    }
    cases = [[text, sp.encode(text)] for text in TEXTS]
    write(name, {"vocabulary": vocabulary, "cases": cases})


RULES_TSV = ("41\t61\n" "42\t62\n" "A0\t20\n" "3000\t20\n" "9\t20\n" "FB01\t66 69\n" "FF21\t41\n" "FF42\t62\n"
             "1F600\t3A 29\n" "65 301\tE9\n" "61 308\tE4\n" "200B\t\n" "2122\t54 4D\n" "337F\t682A 5F0F 20 4F1A 793E\n")


def all_sentencepiece():
    symbols = dict(control_symbols=["<|end|>"])
    llama = dict(model_type="bpe", normalization_rule_name="identity", remove_extra_whitespaces=False,
                 character_coverage=0.99, vocab_size=700, **symbols)
    sentencepiece("spm.json", byte_fallback=True, split_digits=True, allow_whitespace_only_pieces=True, **llama)
    sentencepiece("spm-unknown.json", byte_fallback=False, **llama)
    sentencepiece("spm-unused.json", unused=True, byte_fallback=False, **llama)
    tsv = os.path.join(HERE, "rules.tsv.tmp")
    with open(tsv, "w") as f:
        f.write(RULES_TSV)
    sentencepiece("unigram.json", model_type="unigram", normalization_rule_tsv=tsv, vocab_size=500,
                  character_coverage=0.98, **symbols)
    os.remove(tsv)
    sentencepiece("unigram-bytes.json", model_type="unigram", normalization_rule_name="identity", byte_fallback=True,
                  remove_extra_whitespaces=False, vocab_size=600, character_coverage=0.98, **symbols)


# --- byte-level BPE and WordPiece ---

def bytelevel():
    t = tokenizers.Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  special_tokens=["<|end|>"], show_progress=False)
    t.train_from_iterator(PARAGRAPHS, trainer)
    state = json.loads(t.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].get)
    vocabulary = {
        "model": "gpt2", "pre": "gpt-2", "tokens": tokens,
        "kinds": [3 if token == "<|end|>" else 1 for token in tokens],
        "merges": [" ".join(m) if isinstance(m, list) else m for m in state["merges"]],
        "eos": tokens.index("<|end|>"),
    }
    # Control tokens written in the text are plain text here, so they are not told to this one.
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in state["merges"]]
    plain = tokenizers.Tokenizer(models.BPE(vocab=state["vocab"], merges=merges))
    plain.pre_tokenizer = t.pre_tokenizer
    write("bpe.json", {"vocabulary": vocabulary, "cases": [[text, plain.encode(text).ids] for text in TEXTS]})


def wordpiece(name, lowercase):
    t = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=1000))
    t.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=700, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
                                        show_progress=False)
    t.train_from_iterator(PARAGRAPHS, trainer)
    state = json.loads(t.to_str())["model"]
    names = sorted(state["vocab"], key=state["vocab"].get)
    plain = tokenizers.Tokenizer(models.WordPiece(vocab=state["vocab"], unk_token="[UNK]", max_input_chars_per_word=1000))
    plain.normalizer, plain.pre_tokenizer = t.normalizer, t.pre_tokenizer

    def gguf(token):
        if token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"):
            return token
        return token[2:] if token.startswith("##") else "▁" + token
    vocabulary = {
        "model": "bert", "tokens": [gguf(n) for n in names],
        "kinds": [3 if i < 5 else 1 for i in range(len(names))],
        "lowercase": lowercase,
    }
    write(name, {"vocabulary": vocabulary, "cases": [[text, plain.encode(text).ids] for text in TEXTS]})


splits()
all_sentencepiece()
bytelevel()
wordpiece("wordpiece-uncased.json", True)
wordpiece("wordpiece-cased.json", False)
