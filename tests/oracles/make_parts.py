"""Small parts of a model, trained by PEFT: norms (LN tuning), biases (BEFT), rows of the embedding (trainable tokens): gradients,
and twenty optimiser steps.

    python make_parts.py VECTORS [--only METHOD ...]

VECTORS  the folder that make_families.py and make_curves.py filled. METHOD/ and curve-METHOD/ are written beside each model's files

Versions: requirements.txt. Every number is seeded. See README.md for the files.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from peft import BeftConfig, LNTuningConfig, TrainableTokensConfig, get_peft_model

from answers import KINDS, PEFT, WIDE, check_reload, normal, peft_named, write_curve, write_gradients
from make_curves import rows_of
from make_gradients import LINEAR, masked_rows
from reference import load, numbers, save_adapter

NORMS = ["input_layernorm", "post_attention_layernorm", "norm"]
MODELS = {"llama": ["norms", "bias", "tokens"], "qwen3": ["norms"], "llama-tied-bias": ["bias", "tokens"]}
RATES = {"norms": 5e-2, "bias": 2e-2, "tokens": 1e-1}


def token_indices(name, rows):
    """Tokens of the rows, one that is in none of them, in no order: the stored rows follow the list, not the table."""
    counts = np.bincount(np.concatenate([tokens for tokens, _ in rows]))
    absent = int(np.flatnonzero(np.append(counts, 0) == 0)[0])
    frequent = [int(i) for i in np.argsort(-counts, kind="stable")[:5]]
    return [*frequent[:2], absent, *frequent[2:]]


def config_of(name, method, rows):
    if method == "norms":
        return LNTuningConfig(target_modules=NORMS + (["q_norm", "k_norm"] if name == "qwen3" else []))
    if method == "bias":
        return BeftConfig(target_modules=LINEAR)
    return TrainableTokensConfig(token_indices=token_indices(name, rows))


def attach(name, folder, method, tag, rows, deviation, kind="F32"):
    """The parts, each number off its start by `deviation`: norms from the base's, biases from 0, rows from the base's."""
    base, config = load(folder, kind), config_of(name, method, rows)
    config.task_type, config.base_model_name_or_path = "CAUSAL_LM", name
    base.name_or_path = base.config._name_or_path = name
    model = get_peft_model(base, config).eval()
    named, draw = peft_named(model), numbers(name, tag)
    with torch.no_grad():
        for _, weight in sorted(named.items()):
            weight.add_(normal(draw, weight.shape, deviation))
    return model, named


def write_method(name, folder, method):
    model, named = attach(name, folder, method, method, masked_rows(name), 0.3)
    save_adapter(model, folder / method, embeddings=False)
    write_gradients(name, folder, method, model, named, PEFT)
    check_reload(name, folder, method)
    curve_of(name, folder, method, "F32")


def curve_of(name, folder, method, kind):
    curve_rows, curve = rows_of(name), folder / f"curve-{method}"
    model, named = attach(name, folder, method, f"curve {method}", curve_rows, 0.05, kind)
    curve.mkdir(exist_ok=True)
    save_adapter(model, curve / f"initial-{kind}", embeddings=False)
    if not (folder / "curve" / "data.jsonl").exists():  # no other curve over this model
        lines = [json.dumps(dict(input_ids=t) if t == l else dict(input_ids=t, labels=l)) + "\n" for t, l in curve_rows]
        (curve / "data.jsonl").write_text("".join(lines))
    write_curve(name, folder, method, model, named, RATES[method], kind)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("vectors", type=Path)
    parser.add_argument("--only", nargs="*", choices=RATES, default=list(RATES))
    options = parser.parse_args()
    for name, methods in MODELS.items():
        for method in methods:
            if method in options.only:
                write_method(name, options.vectors / name, method)
    for method in options.only:
        for kind in KINDS:
            curve_of(WIDE, options.vectors / WIDE, method, kind)


if __name__ == "__main__":
    main()
