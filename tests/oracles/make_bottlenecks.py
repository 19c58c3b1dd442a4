"""Bottleneck adapters (Houlsby et al., arXiv 1902.00751; Pfeiffer et al., arXiv 2005.00247; He et al., arXiv 2110.04366) as
LLM-Adapters lays and stores them (arXiv 2304.01933): gradients, and twenty optimiser steps.

    python make_bottlenecks.py VECTORS [--only METHOD ...]

VECTORS  the folder that make_families.py and make_curves.py filled. METHOD/ and curve-METHOD/ are written beside llama's files,
         curve-METHOD/ of two methods beside llama-wide's.

PEFT has no such layer, so the module stands here. For a product W of a block, with D [size, n] and U [n, size], no biases:

    a(z) = s · U φ(D z)
    before    y = W (x + a(x)) + bias          n = inputs
    after     h = W x + bias;  y = h + a(h)    n = outputs
    parallel  y = W x + bias + a(x)            D [size, inputs], U [outputs, size]

Versions: requirements.txt. Every number is seeded. See README.md for the files.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from answers import KINDS, TORCH, WIDE, normal, save_numbers, write_curve, write_gradients
from reference import load, numbers

MODEL, SIZE = "llama", 4
BEFORE = ("gate_proj", "up_proj")  # what LLM-Adapters puts a serial adapter in front of; it lies behind any other product
FEED_FORWARD = ["gate_proj", "up_proj", "down_proj"]

# what differs from the defaults of LLM-Adapters
METHODS = {
    "series": dict(target_modules=FEED_FORWARD),
    "series-relu": dict(target_modules=FEED_FORWARD, non_linearity="relu"),
    "series-attn": dict(target_modules=["o_proj", "down_proj"]),
    "series-pfeiffer": dict(target_modules=["down_proj"], use_adapterp=True),
    "parallel": dict(target_modules=["q_proj", "k_proj", "v_proj"], use_parallel_adapter=True),
    "parallel-mlp": dict(target_modules=["up_proj", "down_proj"], use_parallel_adapter=True, scaling=4.0),
    "parallel-learned": dict(target_modules=["q_proj", "k_proj", "v_proj"], use_parallel_adapter=True, scaling="learned"),
}
OVER_WIDE = ["series", "parallel"]
RATES = {"parallel-mlp": 5e-3}
RATE = 2e-2


def config_of(method, name=MODEL):
    return dict(peft_type="BOTTLENECK", task_type="CAUSAL_LM", base_model_name_or_path=name, inference_mode=True,
                bottleneck_size=SIZE, non_linearity="tanh", adapter_dropout=0.0, scaling=1.0, use_parallel_adapter=False,
                use_adapterp=False, bias="none", init_weights="bert", modules_to_save=None) | METHODS[method]


class Bottleneck(torch.nn.Module):
    """One product under its adapter."""

    def __init__(self, base, site, config):
        super().__init__()
        inner, outer = base.in_features, base.out_features
        self.base, self.place = base, ("parallel" if config["use_parallel_adapter"] else "before" if site in BEFORE else "after")
        self.activation = {"tanh": torch.tanh, "relu": torch.relu}[config["non_linearity"]]
        self.adapter_down = torch.nn.Linear(outer if self.place == "after" else inner, config["bottleneck_size"], bias=False)
        self.adapter_up = torch.nn.Linear(config["bottleneck_size"], inner if self.place == "before" else outer, bias=False)
        learned = config["scaling"] == "learned"
        self.adapter_scaling = torch.nn.Parameter(torch.ones(1)) if learned else config["scaling"]

    def branch(self, z):
        return self.adapter_scaling * self.adapter_up(self.activation(self.adapter_down(z)))

    def forward(self, x):
        if self.place == "before":
            return self.base(x + self.branch(x))
        h = self.base(x)
        return h + self.branch(h if self.place == "after" else x)


def attach(folder, method, tag, up, config, name=MODEL, kind="F32"):
    """(the base under its adapters, {file key: parameter}). D has the length of its input, U deviates by `up`, a learned scale
    lies around 1.5."""
    model = load(folder, kind)
    model.requires_grad_(False)
    for layer in model.model.layers:
        for block in (layer.self_attn, layer.mlp):
            for site, product in list(block.named_children()):
                if site in config["target_modules"]:
                    setattr(block, site, Bottleneck(product, site, config))
    draw, named = numbers(name, tag), {}
    with torch.no_grad():
        for key, weight in sorted(model.named_parameters()):
            if "adapter_" in key:
                if "adapter_scaling" in key:
                    weight.copy_(1.5 + normal(draw, weight.shape, 0.3))
                else:
                    weight.copy_(normal(draw, weight.shape, up if "adapter_up" in key else 1 / np.sqrt(weight.shape[1])))
                named[f"base_model.model.{key}"] = weight
    return model.eval(), named


def curve_of(name, folder, method, kind):
    config = config_of(method, name)
    model, named = attach(folder, method, f"curve {method}", 0.05, config, name, kind)
    (folder / f"curve-{method}").mkdir(exist_ok=True)
    save_numbers(folder / f"curve-{method}" / f"initial-{kind}", config, named)
    write_curve(name, folder, method, model, named, RATES.get(method, RATE), kind)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("vectors", type=Path)
    parser.add_argument("--only", nargs="*", choices=METHODS, default=list(METHODS))
    options = parser.parse_args()
    folder = options.vectors / MODEL
    for method in options.only:
        config = config_of(method)
        model, named = attach(folder, method, method, 0.3, config)
        save_numbers(folder / method, config, named)
        write_gradients(MODEL, folder, method, model, named, TORCH)
        curve_of(MODEL, folder, method, "F32")
        for kind in KINDS if method in OVER_WIDE else []:
            curve_of(WIDE, options.vectors / WIDE, method, kind)


if __name__ == "__main__":
    main()
