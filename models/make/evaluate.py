#!/usr/bin/env python3
"""Perplexity of a GGUF file on a text, counted as llama-perplexity counts it, and samples.

The text is cut into pieces of the context length; each begins with <s> in place of its first token, and the second
half of its tokens is scored.
"""
import argparse
import json
import math

import torch

from gguf_torch import load_model, load_tokenizer
from train import chat_ids

PROMPTS = ["Tell me a story about a fox and a crow.", "Tell me a story.", "Who are you?",
           "Once upon a time there was a little mouse who lived in a clock.", "Tell me a short story about a brave princess."]


@torch.no_grad()
def perplexity(model, ids, ctx, bos):
    chunks = torch.tensor(ids[:len(ids) // ctx * ctx]).view(-1, ctx)
    chunks[:, 0] = bos
    first, total, n = ctx // 2, 0.0, 0
    for x in chunks.split(8):
        logp = torch.log_softmax(model(x).float(), -1)[:, first:-1]
        total -= logp.gather(2, x[:, first + 1:, None]).sum().item()
        n += x.shape[0] * (ctx - 1 - first)
    return math.exp(total / n), n


@torch.no_grad()
def sample(model, sp, messages, temperature, n=160, top_p=0.95, seed=0):
    gen = torch.Generator().manual_seed(seed)
    ids, _ = chat_ids(sp, messages)
    ids += [sp.piece_to_id("<|assistant|>")] + sp.encode("\n")
    out = []
    for _ in range(n):
        logits = model(torch.tensor([ids + out]))[0, -1].float()
        if temperature == 0:
            t = logits.argmax().item()
        else:
            p, idx = torch.softmax(logits / temperature, -1).sort(descending=True)
            p[p.cumsum(0) - p > top_p] = 0
            t = idx[torch.multinomial(p / p.sum(), 1, generator=gen)].item()
        if t in (sp.eos_id(), sp.piece_to_id("<|end|>")):
            return sp.decode(out) + " <|end|>"
        out.append(t)
    return sp.decode(out)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--gguf", required=True)
    ap.add_argument("--text", help="plain text for the perplexity")
    ap.add_argument("--valid", help="valid.jsonl; with --text it is first written there as plain text")
    ap.add_argument("--samples", action="store_true")
    ap.add_argument("--threads", type=int, default=2)
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    model, sp = load_model(args.gguf), load_tokenizer(args.gguf)
    if args.valid:
        with open(args.text, "w") as f:
            f.write("\n".join("\n".join(json.loads(x)["paras"]) for x in open(args.valid)) + "\n")
    if args.text:
        ids = [sp.bos_id()] + sp.encode(open(args.text).read())
        p, n = perplexity(model, ids, model.c.max_position_embeddings, sp.bos_id())
        print(f"{args.gguf}: perplexity {p:.4f} over {n} of {len(ids)} tokens")
    if args.samples:
        for q in PROMPTS:
            for t in (0, 0.8):
                print(f"[{q}] t={t}\n{sample(model, sp, [{'role': 'user', 'content': q}], t)}\n")


if __name__ == "__main__":
    main()
