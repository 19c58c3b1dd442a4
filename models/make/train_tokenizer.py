#!/usr/bin/env python3
"""Train the SentencePiece BPE tokenizer (4096 pieces, byte fallback, no normalisation)."""
import argparse
import json
import pathlib

import sentencepiece as spm
from sentencepiece import sentencepiece_model_pb2 as pb

CONTROL = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--data", required=True, help="folder with train.jsonl")
    ap.add_argument("--out", required=True, help="tokenizer.model to write")
    ap.add_argument("--vocab", type=int, default=4096)
    args = ap.parse_args()
    out = pathlib.Path(args.out)
    paras = [p for line in open(pathlib.Path(args.data) / "train.jsonl") for p in json.loads(line)["paras"]]
    # Paragraphs follow a line end, so their first word has no space before it: train without the dummy
    # prefix, and put the flag into the finished model, as Llama 2's tokenizer has it.
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(paras), model_prefix=str(out.with_suffix("")), model_type="bpe", vocab_size=args.vocab,
        byte_fallback=True, character_coverage=1.0, normalization_rule_name="identity", add_dummy_prefix=False,
        remove_extra_whitespaces=False, split_digits=True, allow_whitespace_only_pieces=False, unk_id=0, bos_id=1,
        eos_id=2, pad_id=-1, control_symbols=CONTROL, max_sentence_length=1 << 20, num_threads=2, minloglevel=1,
        required_chars="".join(map(chr, range(33, 127))))
    m = pb.ModelProto()
    m.ParseFromString(out.read_bytes())
    m.normalizer_spec.add_dummy_prefix = True
    out.write_bytes(m.SerializeToString())
    out.with_suffix(".vocab").unlink()
    sp = spm.SentencePieceProcessor(model_file=str(out))
    chars = sum(map(len, paras))
    n = sum(map(len, sp.encode(paras)))
    print(f"{len(sp)} pieces, {n} tokens, {chars / n:.3f} characters a token")


if __name__ == "__main__":
    main()
