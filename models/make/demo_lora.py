#!/usr/bin/env python3
"""Reference run of the demo with PEFT: a LoRA over the dequantized GGUF learns the ship's parrot's manner."""
import argparse
import json
import math
import pathlib
import random
import time

import torch
from peft import LoraConfig, get_peft_model

from evaluate import sample
from gguf_torch import load_hf, load_tokenizer
from train import chat_ids

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Logits(torch.nn.Module):
    def __init__(self, m):
        super().__init__()
        self.m = m

    def forward(self, ids):
        return self.m(input_ids=ids).logits


def batch_of(rows):
    n = max(len(i) for i, _ in rows)
    x = torch.full((len(rows), n), 2)
    y = torch.full((len(rows), n), -100)
    for k, (ids, said) in enumerate(rows):
        x[k, :len(ids)] = torch.tensor(ids)
        y[k, :len(ids)] = torch.tensor([i if s else -100 for i, s in zip(ids, said)])
    return x, y


def loss_of(net, rows):
    x, y = batch_of(rows)
    return torch.nn.functional.cross_entropy(net(x)[:, :-1].flatten(0, 1), y[:, 1:].flatten(), ignore_index=-100)


@torch.no_grad()
def held_out(net, rows):
    total = n = 0
    for r in rows:
        k = sum(r[1])
        total += loss_of(net, [r]).item() * k
        n += k
    return total / n


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--gguf", required=True)
    ap.add_argument("--train", required=True)
    ap.add_argument("--eval", required=True)
    ap.add_argument("--prompts", required=True)
    ap.add_argument("--rank", type=int, default=8)
    ap.add_argument("--alpha", type=float, default=16)
    ap.add_argument("--lr", type=float, default=2e-3)
    ap.add_argument("--batch", type=int, default=8)
    ap.add_argument("--epochs", type=int, default=5)
    ap.add_argument("--warmup", type=int, default=10)
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--save", help="folder for the PEFT adapter")
    args = ap.parse_args()
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    torch.set_num_threads(2)
    sp = load_tokenizer(args.gguf)
    read = lambda p: [chat_ids(sp, json.loads(x)["messages"]) for x in open(p)]
    rows, held = read(args.train), read(args.eval)
    prompts = open(args.prompts).read().splitlines()
    model = get_peft_model(load_hf(args.gguf), LoraConfig(r=args.rank, lora_alpha=args.alpha, lora_dropout=0.0, target_modules=TARGETS))
    net = Logits(model)
    steps = args.epochs * math.ceil(len(rows) / args.batch)
    print(f"{len(rows)} rows, {sum(len(i) for i, _ in rows)} tokens ({sum(sum(s) for _, s in rows)} answered), {steps} steps; "
          f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,} trained parameters")
    print(f"held-out loss before: {held_out(net, held):.3f}")

    def answers():
        for q in prompts:
            print(f"  [{q}] {sample(net, sp, [{'role': 'user', 'content': q}], 0, n=120)!r}")

    answers()
    opt = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=args.lr, betas=(0.9, 0.99), weight_decay=0.0)
    step = passes = 0
    t0 = time.time()
    for epoch in range(args.epochs):
        random.shuffle(rows)
        for i in range(0, len(rows), args.batch):
            r = rows[i:i + args.batch]
            lr = args.lr * min(1, (step + 1) / args.warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))
            opt.param_groups[0]["lr"] = lr
            loss = loss_of(net, r)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            opt.zero_grad()
            step += 1
            passes += sum(len(i) for i, _ in r)
        print(f"epoch {epoch + 1}, step {step}, {passes} token-passes, {time.time() - t0:.0f} s: loss {loss.item():.3f}, "
              f"held-out {held_out(net, held):.3f}", flush=True)
    answers()
    if args.save:
        model.save_pretrained(pathlib.Path(args.save))


if __name__ == "__main__":
    main()
