"""Whole-matrix deltas made of small factors, by PEFT: LoHa (arXiv 2108.06098, 2309.14859) and LoKr (2309.14859): gradients, and
twenty optimiser steps.

    python make_products.py VECTORS [--only METHOD ...]

VECTORS  the folder that make_families.py and make_curves.py filled. METHOD/ and curve-METHOD/ are written beside llama's files,
         curve-METHOD/ of two methods beside llama-wide's

    LoHa  W' = W + s · (w1_a w1_b) ∘ (w2_a w2_b)
    LoKr  W' = W + s · w1 ⊗ w2            w1 = w1_a w1_b, w2 = w2_a w2_b where they are decomposed; s = α/r in any case

Versions: requirements.txt. Every number is seeded. See README.md for the files.
"""

import argparse
from pathlib import Path

import torch
from peft import LoHaConfig, LoKrConfig, get_peft_model
from safetensors.numpy import load_file

from answers import KINDS, PEFT, WIDE, check_reload, normal, peft_named, write_curve, write_gradients
from make_gradients import LINEAR
from reference import load, numbers, save_adapter

MODEL = "llama"
METHODS = {
    # a rank and an alpha of its own for some sites
    "loha": lambda: LoHaConfig(r=2, alpha=4, target_modules=LINEAR, rank_pattern={"down_proj": 3}, alpha_pattern={"k_proj": 3}),
    # r is at least half of the larger side of w2 everywhere: no factor is decomposed
    "lokr": lambda: LoKrConfig(r=8, alpha=4, target_modules=LINEAR),
    # w2 decomposed, w1 [4, 4]
    "lokr-low": lambda: LoKrConfig(r=2, alpha=1, target_modules=LINEAR, decompose_factor=4),
    "lokr-both": lambda: LoKrConfig(r=2, alpha=2, target_modules=LINEAR, decompose_both=True),
}
FACTORS = {"loha": {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}, "lokr": {"lokr_w1", "lokr_w2"},
           "lokr-low": {"lokr_w1", "lokr_w2_a", "lokr_w2_b"}, "lokr-both": {"lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"}}
OVER_WIDE = ["loha", "lokr"]
RATE = 2e-2


def attach(folder, method, tag, times, name=MODEL, kind="F32"):
    """The base under the factors: one of two deviates by 0.35, one of three or four by 0.4, all that `times`."""
    base, config = load(folder, kind), METHODS[method]()
    config.task_type, config.base_model_name_or_path = "CAUSAL_LM", name
    base.name_or_path = base.config._name_or_path = name
    model = get_peft_model(base, config).eval()
    named, draw = peft_named(model), numbers(name, tag)
    assert {key.rsplit(".", 1)[1] for key in named} == FACTORS[method]
    with torch.no_grad():
        for _, weight in sorted(named.items()):
            weight.copy_(normal(draw, weight.shape, times * (0.35 if len(FACTORS[method]) == 2 else 0.4)))
    return model, named


def check_formula(folder, method):
    """The formula above, over the file, is what PEFT adds."""
    factors = {k: torch.from_numpy(v) for k, v in load_file(folder / method / "adapter_model.safetensors").items()}
    model, _ = attach(folder, method, method, 1.0)
    for site in sorted({key.rsplit(".", 1)[0] for key in factors}):
        layer = model.get_submodule(site)
        r, alpha = layer.r["default"], layer.alpha["default"]
        whole = {}
        for one in ("hada_w1", "hada_w2", "lokr_w1", "lokr_w2"):
            if f"{site}.{one}_a" in factors:
                whole[one] = factors[f"{site}.{one}_a"] @ factors[f"{site}.{one}_b"]
            elif f"{site}.{one}" in factors:
                whole[one] = factors[f"{site}.{one}"]
        first, second = whole.values()
        delta = alpha / r * (first * second if method == "loha" else torch.kron(first, second))
        assert (delta - layer.get_delta_weight("default")).abs().max() < 1e-6


def curve_of(name, folder, method, kind):
    curve = folder / f"curve-{method}"
    model, named = attach(folder, method, f"curve {method}", 0.5, name, kind)
    curve.mkdir(exist_ok=True)
    save_adapter(model, curve / f"initial-{kind}", embeddings=False)
    write_curve(name, folder, method, model, named, RATE, kind)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("vectors", type=Path)
    parser.add_argument("--only", nargs="*", choices=METHODS, default=list(METHODS))
    options = parser.parse_args()
    folder = options.vectors / MODEL
    for method in options.only:
        model, named = attach(folder, method, method, 1.0)
        save_adapter(model, folder / method, embeddings=False)
        write_gradients(MODEL, folder, method, model, named, PEFT)
        check_reload(MODEL, folder, method)
        check_formula(folder, method)
        curve_of(MODEL, folder, method, "F32")
        for kind in KINDS if method in OVER_WIDE else []:
            curve_of(WIDE, options.vectors / WIDE, method, kind)


if __name__ == "__main__":
    main()
