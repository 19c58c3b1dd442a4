"""Loss curves of PyTorch + PEFT: twenty optimiser steps of a given adapter on given rows.

    python make_curves.py VECTORS [--only NAME ...]

VECTORS  the folder that make_families.py filled. curve/ is written beside each model's files: data.jsonl (the rows, already
         tokens), initial/ (the adapter at the start, PEFT), TYPE.json (one object per step) and final-TYPE/ (the adapter at the end)

The loop is plain PyTorch, not a trainer: rows in the file's order, round and round; a step is 2 micro-batches of 2 rows; the loss
of a step is the mean over all trained tokens of its 4 rows; AdamW, constant rate, clipping by global norm, no dropout.
Versions: torch 2.15.0, transformers 5.23.0, peft 0.21.2, gguf 0.19.0, numpy 2.4.6 (requirements.txt).
Every number is seeded by the model's name. See README.md for the files.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from make_gradients import attach, mean_loss
from reference import MODELS, numbers, save_adapter, write_json

SETTINGS = dict(steps=20, batch_size=2, grad_accumulation=2, learning_rate=2e-3, lr_schedule="constant", betas=[0.9, 0.999],
                epsilon=1e-8, max_grad_norm=1.0, dropout=0.0, shuffle=False)
ROWS = 16


def rows_of(name):
    """Rows of 12 to 40 tokens that repeat a short motif, so that twenty steps learn something. Every third row masks its first
    third; every fourth masks every fifth token."""
    draw, rows = numbers(name, "curve rows"), []
    for i in range(ROWS):
        length, period = int(draw.integers(12, 41)), int(draw.integers(3, 7))
        motif = draw.integers(0, MODELS[name]["vocab"], period)
        tokens = [int(motif[t % period]) for t in range(length)]
        labels = [-100 if (i % 3 == 0 and t < length // 3) or (i % 4 == 1 and t % 5 == 0) else token
                  for t, token in enumerate(tokens)]
        rows.append((tokens, labels))
    return rows


def run(name, folder, kind, b, weight_decay):
    model = attach(name, folder, kind, "lora-all", "curve", b)
    curve, rows = folder / "curve", rows_of(name)
    curve.mkdir(exist_ok=True)
    # labels are left out where nothing is masked: the same as labels equal to input_ids
    (curve / "data.jsonl").write_text("".join(
        json.dumps(dict(input_ids=t) if t == l else dict(input_ids=t, labels=l)) + "\n" for t, l in rows))
    save_adapter(model, curve / "initial", embeddings=False)

    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=SETTINGS["learning_rate"], betas=tuple(SETTINGS["betas"]),
                                  eps=SETTINGS["epsilon"], weight_decay=weight_decay)
    steps, window = [], SETTINGS["batch_size"] * SETTINGS["grad_accumulation"]
    for step in range(SETTINGS["steps"]):
        loss, tokens = mean_loss(model, [rows[(step * window + i) % len(rows)] for i in range(window)])
        optimiser.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, SETTINGS["max_grad_norm"])
        optimiser.step()
        steps.append(dict(step=step + 1, loss=loss.item(), tokens=tokens, lr=SETTINGS["learning_rate"], grad_norm=norm.item()))
    save_adapter(model, curve / f"final-{kind}", embeddings=False)
    with torch.no_grad():
        after, _ = mean_loss(model, rows)
    write_json(curve / f"{kind}.json", dict(base=f"{kind}.gguf", settings=SETTINGS | dict(weight_decay=weight_decay),
                                            initial_b=b, steps=steps, loss_after_all_rows=after.item()))
    losses, norms = [s["loss"] for s in steps], [s["grad_norm"] for s in steps]
    print(f"{name:12} {kind:5} loss {losses[0]:.4f} … {losses[-1]:.4f} (all rows after: {after:.4f})  "
          f"gradient norm {min(norms):.2f} … {max(norms):.2f}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("vectors", type=Path)
    parser.add_argument("--only", nargs="*", choices=MODELS, default=[n for n, m in MODELS.items() if m.get("curves")])
    options = parser.parse_args()
    for name in options.only:
        for kind, how in MODELS[name]["curves"].items():
            run(name, options.vectors / name, kind, **how)


if __name__ == "__main__":
    main()
