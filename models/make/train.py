#!/usr/bin/env python3
"""Train the base model on a CPU: Muon for the matrices, AdamW for the rest, bf16 autocast over f32 weights.

The learning rate warms up, stays, and falls to zero over the last part (--decay); the first steps use short rows,
the last part the full context. Every --save seconds the state is written; the same command goes on from there.
"""
import argparse
import dataclasses
import json
import math
import pathlib
import time

import numpy as np
import sentencepiece as spm
import torch

from model import Config, Llama

MARK = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}


def chat_ids(sp, messages):
    """<s><|user|>\\n...<|end|><|assistant|>\\n...<|end|> and a mask of what the assistant says."""
    ids, said = [sp.bos_id()], [0]
    for m in messages:
        body = sp.encode("\n" + m["content"]) + [sp.piece_to_id("<|end|>")]
        ids += [sp.piece_to_id(MARK[m["role"]])] + body
        # The marker, the space and the line end are given; the rest is the assistant's.
        said += [0, 0, 0] + [int(m["role"] == "assistant")] * (len(body) - 2)
    return ids, said


class Books:
    """Endless rows of `length` + 1 tokens from chapters in a new order every epoch."""

    def __init__(self, path, sp, length, seed):
        self.docs = [np.array([sp.bos_id()] + sp.encode("\n".join(json.loads(x)["paras"])) + [sp.eos_id()], np.int32)
                     for x in open(path)]
        self.length, self.seed, self.n, self.epoch = length, seed, 0, -1
        self.tokens = sum(map(len, self.docs))
        self.per_epoch = (self.tokens - 2 * length) // length

    def take(self, count, at):
        rows = []
        for i in range(at, at + count):
            e, j = divmod(i, self.per_epoch)
            if e != self.epoch:
                rng = np.random.default_rng((self.seed, e))
                stream = np.concatenate([self.docs[k] for k in rng.permutation(len(self.docs))])
                self.stream = stream[rng.integers(self.length):]
                self.order, self.epoch = rng.permutation(self.per_epoch), e
            k = int(self.order[j]) * self.length
            rows.append(self.stream[k:k + self.length + 1])
        return np.stack(rows)


class Chats:
    """Rows that begin with a conversation's <s>, filled up with more of them."""

    def __init__(self, path, sp, length, seed, limit=None):
        rows, row = [], []
        lines = open(path).read().splitlines()
        np.random.default_rng(seed).shuffle(lines)
        for x in lines[:limit]:
            ids, said = chat_ids(sp, json.loads(x)["messages"])
            row += list(zip(ids, said))
            if len(row) > length:
                rows.append(row[:length + 1])
                row = []
        self.rows = np.array(rows, np.int32)

    def take(self, count, at):
        return self.rows[[i % len(self.rows) for i in range(at, at + count)]]


def orthogonalize(g):
    """Newton-Schulz iteration to the nearest orthogonal matrices of a batch (Muon)."""
    x = g.bfloat16()
    if g.shape[-2] > g.shape[-1]:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    if g.shape[-2] > g.shape[-1]:
        x = x.mT
    return x.float()


class Muon:
    def __init__(self, params, momentum=0.95):
        self.groups, self.momentum = {}, momentum
        for p in params:
            self.groups.setdefault(tuple(p.shape), []).append(p)
        self.buf = {s: torch.zeros(len(ps), *s) for s, ps in self.groups.items()}

    @torch.no_grad()
    def step(self, lr, wd):
        for s, ps in self.groups.items():
            g = torch.stack([p.grad for p in ps])
            self.buf[s].lerp_(g, 1 - self.momentum)
            u = orthogonalize(g.lerp(self.buf[s], self.momentum)) * max(1.0, s[0] / s[1]) ** 0.5
            for p, d in zip(ps, u):
                p.mul_(1 - lr * wd).add_(d, alpha=-lr)


@torch.no_grad()
def evaluate(model, loss, rows, batch=8):
    total = n = 0.0
    for i in range(0, len(rows) - len(rows) % batch, batch):
        ids, targets = rows[i:i + batch]
        with torch.autocast("cpu", torch.bfloat16):
            _, ce = loss(ids, targets, 0.0)
        k = (targets >= 0).sum().item()
        total, n = total + ce.item() * k, n + k
    return total / n


def pack(books, chats=None):
    """Rows to inputs and targets; -1 where nothing is asked (what stands before a chat's first answer counts too)."""
    x = books if chats is None else np.concatenate([books, chats[:, :, 0]])
    x = torch.from_numpy(np.ascontiguousarray(x)).long()
    return x[:, :-1].contiguous(), x[:, 1:].contiguous()


class Rows:
    """A fixed validation set with optional mask."""

    def __init__(self, ids, mask=None):
        self.x = torch.from_numpy(ids).long()
        self.y = self.x[:, 1:].clone()
        if mask is not None:
            self.y[torch.from_numpy(mask)[:, 1:] == 0] = -1

    def __len__(self):
        return len(self.x)

    def __getitem__(self, s):
        return self.x[s, :-1].contiguous(), self.y[s].contiguous()


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--data", required=True, help="folder with train.jsonl, valid.jsonl, chat_train.jsonl, chat_valid.jsonl, tokenizer.model")
    ap.add_argument("--out", required=True, help="folder for checkpoints")
    ap.add_argument("--steps", type=int, default=3000)
    ap.add_argument("--decay", type=float, default=0.35, help="part of the steps over which the rate falls to zero")
    ap.add_argument("--long", type=float, default=0.30, help="last part of the steps, with rows of the full context")
    ap.add_argument("--warmup", type=int, default=60)
    ap.add_argument("--tokens", type=int, default=8192, help="tokens a step")
    ap.add_argument("--micro", type=int, default=4096, help="tokens a pass")
    ap.add_argument("--short", type=int, default=256)
    ap.add_argument("--chat", type=float, default=0.25, help="part of the rows that are conversations")
    ap.add_argument("--muon-lr", type=float, default=0.02)
    ap.add_argument("--adam-lr", type=float, default=3e-3)
    ap.add_argument("--wd", type=float, default=0.1)
    ap.add_argument("--z", type=float, default=1e-4)
    ap.add_argument("--seed", type=int, default=7)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--save", type=float, default=240)
    ap.add_argument("--eval-every", type=int, default=250)
    args = ap.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    data, out = pathlib.Path(args.data), pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    sp = spm.SentencePieceProcessor(model_file=str(data / "tokenizer.model"))
    cfg = Config(vocab_size=len(sp))
    model = Llama(cfg)
    full = cfg.max_position_embeddings
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    muon = Muon(matrices)
    adam = torch.optim.AdamW(others, lr=args.adam_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    state = {"step": 0, "rows": {}, "seconds": 0.0}
    ckpt = out / "state.pt"
    if ckpt.exists():
        s = torch.load(ckpt)
        model.load_state_dict(s["model"])
        adam.load_state_dict(s["adam"])
        muon.buf, state = s["muon"], s["state"]
        print("going on from step", state["step"], flush=True)
    else:
        print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)

    def save():
        tmp = out / "state.tmp"
        torch.save({"model": model.state_dict(), "adam": adam.state_dict(), "muon": muon.buf, "state": state,
                    "config": dataclasses.asdict(cfg)}, tmp)
        tmp.replace(ckpt)

    vb = Books(data / "valid.jsonl", sp, full, 0)
    vb = Rows(vb.take(min(vb.per_epoch, 64), 0))
    vc = Chats(data / "chat_valid.jsonl", sp, full, 0).rows
    vc = Rows(vc[:48, :, 0], vc[:48, :, 1])
    loss = torch.compile(model.loss, dynamic=False)
    feeds = {}
    t0 = tsave = tlog = time.time()
    seen = 0
    while state["step"] < args.steps:
        step = state["step"]
        left = 1 - step / args.steps
        length = full if left <= args.long else args.short
        if length not in feeds:
            feeds.clear()
            feeds[length] = (Books(data / "train.jsonl", sp, length, args.seed + length),
                             Chats(data / "chat_train.jsonl", sp, length, args.seed + length))
            print(f"rows of {length}: {feeds[length][0].tokens} book tokens, {len(feeds[length][1].rows)} chat rows", flush=True)
        books, chats = feeds[length]
        at = state["rows"].setdefault(length, [0, 0])
        rows = args.micro // length
        nc = round(rows * args.chat)
        scale = min(1.0, (step + 1) / args.warmup, left / args.decay)
        passes = args.tokens // args.micro
        total = 0.0
        for _ in range(passes):
            x, y = pack(books.take(rows - nc, at[0]), chats.take(nc, at[1]))
            at[0] += rows - nc
            at[1] += nc
            with torch.autocast("cpu", torch.bfloat16):
                l, ce = loss(x, y, args.z)
            (l / passes).backward()
            total += ce.item() / passes
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        muon.step(args.muon_lr * scale, args.wd)
        for g in adam.param_groups:
            g["lr"] = args.adam_lr * scale
        adam.step()
        for p in model.parameters():
            p.grad = None
        if not math.isfinite(total):
            raise SystemExit("loss is not finite")
        state["step"] = step + 1
        seen += args.tokens
        now = time.time()
        if (step + 1) % 20 == 0:
            print(f"{step + 1} loss {total:.3f} lr {scale:.2f} {seen / (now - tlog):.0f} tok/s {state['seconds'] + now - t0:.0f} s", flush=True)
            tlog, seen = now, 0
        done = step + 1 == args.steps
        if (step + 1) % args.eval_every == 0 or done:
            b, c = evaluate(model, loss, vb), evaluate(model, loss, vc)
            print(f"== {step + 1} held-out books {b:.4f} (perplexity {math.exp(b):.2f}) answers {c:.4f}", flush=True)
            tlog = time.time()
        if now - tsave > args.save or done:
            state["seconds"] += time.time() - t0
            t0 = tsave = time.time()
            save()


if __name__ == "__main__":
    main()
