#!/usr/bin/env python3
"""Optimiser steps of PEFT's LoRA (rank 16, all linear layers) on LLaMA shapes with random weights, on the CPU.

Without --data: one row of --tokens tokens a step, all of them trained. With --data (JSON lines with input_ids and labels, -100
where nothing is trained): steps of --rows rows, their gradients added: taken one by one (--collate one), in pairs of similar
lengths (pairs), or all at once (padded), the shorter ones padded. Padding does not count as tokens.
"""
import argparse
import json
import resource
import statistics
import time

SHAPES = {
    "1b": dict(vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
               num_key_value_heads=8, head_dim=64, tie_word_embeddings=True),
    "110m": dict(vocab_size=32000, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12,
                 num_key_value_heads=12, head_dim=64, tie_word_embeddings=False),
}
ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("--shape", default="1b", choices=SHAPES)
ap.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
ap.add_argument("--tokens", type=int, default=512)
ap.add_argument("--data")
ap.add_argument("--rows", type=int, default=1)
ap.add_argument("--collate", default="one", choices=["one", "pairs", "padded"])
ap.add_argument("--threads", type=int, default=2)
ap.add_argument("--steps", type=int, default=2)
args = ap.parse_args()

import torch  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

torch.set_num_threads(args.threads)
torch.manual_seed(0)
config = LlamaConfig(**SHAPES[args.shape], max_position_embeddings=4096, attn_implementation="sdpa", use_cache=False)
torch.set_default_dtype(getattr(torch, args.dtype))
model = LlamaForCausalLM(config)
torch.set_default_dtype(torch.float32)
model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, task_type="CAUSAL_LM", target_modules="all-linear"))
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)


def padded(rows):
    longest = max(len(r["input_ids"]) for r in rows)
    fill = lambda key, x: torch.tensor([r[key] + [x] * (longest - len(r[key])) for r in rows])  # noqa: E731
    mask = torch.tensor([[1] * len(r["input_ids"]) + [0] * (longest - len(r["input_ids"])) for r in rows])
    return dict(input_ids=fill("input_ids", 0), labels=fill("labels", -100), attention_mask=mask)


if args.data:
    rows = [json.loads(line) for line in open(args.data)]
    for r in rows:
        r.setdefault("labels", r["input_ids"])
    steps = [sorted(rows[i:i + args.rows], key=lambda r: len(r["input_ids"])) for i in range(0, len(rows), args.rows)]
    tokens = [sum(len(r["input_ids"]) for r in step) for step in steps]
    together = {"one": 1, "pairs": 2, "padded": args.rows}[args.collate]
    batches = [[padded(step[i:i + together]) for i in range(0, len(step), together)] for step in steps]
else:
    ids = torch.randint(0, config.vocab_size, (1, args.tokens))
    batches, tokens = [[dict(input_ids=ids, labels=ids)]] * args.steps, [args.tokens] * args.steps
seconds = []
for step in [batches[0], *batches]:  # the first is a warm-up
    start = time.perf_counter()
    for batch in step:
        model(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    seconds.append(time.perf_counter() - start)
each = [n / s for n, s in zip(tokens, seconds[1:])]
speed = sum(tokens) / sum(seconds[1:]) if args.data else statistics.median(each)
print(json.dumps({"tokens_per_second": speed, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
