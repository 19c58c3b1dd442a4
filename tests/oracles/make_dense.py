"""Whole matrices trained in place, by PyTorch: full fine-tuning of every block matrix, and half fine-tuning (HFT, arXiv
2404.18466), where half of them stand still for a round: gradients, and twenty optimiser steps.

    python make_dense.py VECTORS [--only METHOD ...]

VECTORS  the folder that make_families.py and make_curves.py filled. METHOD/ and curve-METHOD/ are written beside llama's files,
         curve-METHOD/ beside llama-wide's too

Versions: requirements.txt. Every number is seeded. See README.md for the files.
"""

import argparse
from pathlib import Path

import torch

from answers import KINDS, TORCH, WIDE, normal, save_numbers, write_curve, write_gradients
from make_gradients import LINEAR
from reference import load, numbers

MODEL = "llama"
# half fine-tuning draws its half anew every round; this is one round: 7 of 14 matrices, in every layer part of the attention
# and part of the feed-forward
ROUND = ["layers.0.self_attn.q_proj", "layers.0.self_attn.v_proj", "layers.0.mlp.gate_proj", "layers.0.mlp.down_proj",
         "layers.1.self_attn.k_proj", "layers.1.self_attn.o_proj", "layers.1.mlp.up_proj"]
METHODS = {"full": sorted(LINEAR), "hft": sorted(f"model.{site}" for site in ROUND)}
RATES = {"full": 1e-3, "hft": 1e-3}


def attach(folder, method, tag, deviation, name=MODEL, kind="F32"):
    """(the base, {file key: matrix}): the trained matrices off the base's by `deviation`."""
    model, named = load(folder, kind), {}
    model.requires_grad_(False)
    draw = numbers(name, tag)
    for key, weight in sorted(model.named_parameters()):
        site = key.removesuffix(".weight")
        if any(site == target or site.endswith("." + target) for target in METHODS[method]):
            with torch.no_grad():
                weight.add_(normal(draw, weight.shape, deviation))
            named[f"base_model.model.{key}"] = weight.requires_grad_()
    assert len(named) == (14 if method == "full" else 7)
    return model.eval(), named


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("vectors", type=Path)
    parser.add_argument("--only", nargs="*", choices=METHODS, default=list(METHODS))
    options = parser.parse_args()
    folder = options.vectors / MODEL
    for method in options.only:
        config = dict(peft_type=method.upper(), task_type="CAUSAL_LM", base_model_name_or_path=MODEL, inference_mode=True,
                      target_modules=METHODS[method])
        model, named = attach(folder, method, method, 0.05)
        save_numbers(folder / method, config, named)
        write_gradients(MODEL, folder, method, model, named, TORCH)
        for name, kind in [(MODEL, "F32"), *((WIDE, kind) for kind in KINDS)]:
            own = options.vectors / name
            model, named = attach(own, method, f"curve {method}", 0.0, name, kind)
            write_curve(name, own, method, model, named, RATES[method], kind, more=dict(target_modules=METHODS[method]))


if __name__ == "__main__":
    main()
