"""AdaLoRA (arXiv 2303.10512) by PEFT: gradients with the orthogonality term, and twenty optimiser steps in which the budget of
ranks shrinks.

    python make_adalora.py VECTORS

VECTORS  the folder that make_families.py and make_curves.py filled. adalora/ and curve-adalora/ are written beside llama's files,
         curve-adalora/ beside llama-wide's too

    y = W x + bias + α / (init_r + 1e-5) · B (E ∘ (A x))
    loss = cross-entropy + weight / (number of A and B) · ( Σ ‖A Aᵀ − I‖ + Σ ‖Bᵀ B − I‖ )      Frobenius norms, not squared

A step of the curve is: backward, clipping, AdamW, PEFT's update_and_allocate(step), steps from 1. So the importances see the
numbers behind the update and the gradients behind the clipping.
Versions: requirements.txt. Every number is seeded. See README.md for the files.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model

from answers import KINDS, PEFT, WIDE, check_reload, normal, peft_named, write_curve, write_gradients
from make_curves import SETTINGS, rows_of
from make_gradients import masked_rows, mean_loss
from reference import load, numbers, save_adapter

MODEL, METHOD = "llama", "adalora"
OPTIONS = dict(init_r=6, target_r=3, lora_alpha=8, tinit=3, tfinal=5, deltaT=2, beta1=0.85, beta2=0.85, orth_reg_weight=0.1,
               total_step=SETTINGS["steps"])
TARGETS = ["q_proj", "v_proj", "gate_proj", "down_proj"]
RATES = {MODEL: 2e-2, WIDE: 5e-3}  # over WIDE 2e-2 amplifies the rounding of activations beyond 3 % of a loss


def attach(folder, tag, name=MODEL, kind="F32"):
    """The base under triplets: A and B near orthogonality, E around 0."""
    base = load(folder, kind)
    config = AdaLoraConfig(**OPTIONS, target_modules=TARGETS, task_type="CAUSAL_LM", base_model_name_or_path=name)
    base.name_or_path = base.config._name_or_path = name
    model = get_peft_model(base, config).eval()
    named, draw = peft_named(model), numbers(name, tag)
    with torch.no_grad():
        for key, weight in sorted(named.items()):
            long = max(weight.shape)
            weight.copy_(normal(draw, weight.shape, 0.5 if key.endswith("lora_E") else 1 / np.sqrt(long)))
    return model, named


def penalty(model):
    """The second term of the loss; PEFT adds it to the loss that it computes itself."""
    norms = []
    for key, p in model.named_parameters():
        if "lora_A" in key or "lora_B" in key:
            product = p @ p.T if "lora_A" in key else p.T @ p
            norms.append(torch.linalg.matrix_norm(product - torch.eye(len(product), dtype=p.dtype)))
    return OPTIONS["orth_reg_weight"] * sum(norms) / len(norms)


def check_penalty(model):
    tokens, labels = (torch.from_numpy(x).long()[None] for x in masked_rows(MODEL)[0])
    with torch.no_grad():
        ours = mean_loss(model, masked_rows(MODEL)[:1])[0] + penalty(model)
        assert abs(model(input_ids=tokens, labels=labels).loss - ours) < 1e-6


class Allocation:
    """What PEFT's allocator does in each step, written down."""

    def __init__(self, model):
        self.tuner, self.pattern, self.margin = model.base_model, None, np.inf
        self.allocator = self.tuner.rankallocator
        mask = self.allocator.mask_to_budget

        def watched(model, budget):
            pattern = mask(model, budget)
            self.margin = min(self.margin, self.gap(budget))
            return pattern
        self.allocator.mask_to_budget = watched

    def gap(self, budget):
        """How far the best triplet that is masked and the worst that is kept are apart, relative to the latter."""
        score, scores = self.allocator._element_score, []
        for name in self.allocator.name_set:
            e, a, b = (score(name % part) for part in ("lora_E", "lora_A", "lora_B"))
            scores.append(e.view(-1) + a.mean(1) + b.mean(0))
        ordered = torch.cat(scores).sort().values
        lost = self.allocator.init_bgt - budget
        return ((ordered[lost] - ordered[lost - 1]) / ordered[lost]).item()

    def __call__(self, step):
        step += 1
        before = self.pattern
        self.tuner.update_and_allocate(step)
        found = self.tuner.peft_config["default"].rank_pattern
        self.pattern = found and {key.replace(".default", ""): "".join("01"[kept] for kept in mask) for key, mask in found.items()}
        last = OPTIONS["total_step"] - OPTIONS["tfinal"]
        masked = step == last or step > last or (step > OPTIONS["tinit"] and step % OPTIONS["deltaT"] == 0)
        assert masked or self.pattern == before
        kept = sum(mask.count("1") for mask in self.pattern.values()) if self.pattern else self.allocator.init_bgt
        budget = self.allocator.budget_schedule(step)[0]
        assert not masked or kept == budget
        return dict(budget=budget, masked=masked, kept=kept, pattern=self.pattern)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("vectors", type=Path)
    vectors = parser.parse_args().vectors
    folder = vectors / MODEL
    model, named = attach(folder, METHOD)
    check_penalty(model)
    save_adapter(model, folder / METHOD, embeddings=False)
    write_gradients(MODEL, folder, METHOD, model, named, PEFT, penalty=penalty)
    check_reload(MODEL, folder, METHOD)
    curve_of(MODEL, folder, "F32")
    for kind in KINDS:
        curve_of(WIDE, vectors / WIDE, kind)


def curve_of(name, folder, kind):
    curve = folder / f"curve-{METHOD}"
    model, named = attach(folder, f"curve {METHOD}", name, kind)
    curve.mkdir(exist_ok=True)
    save_adapter(model, curve / f"initial-{kind}", embeddings=False)
    allocation = Allocation(model)
    write_curve(name, folder, METHOD, model, named, RATES[name], kind, penalty=penalty, after=allocation, more=OPTIONS)
    print(f"smallest distance of a kept triplet from a masked one: {allocation.margin:.1%}")
    assert allocation.margin > 0.005  # or rounding would decide
    if kind != "F32":
        return
    with torch.no_grad():
        after, _ = mean_loss(model, rows_of(name))
    save_adapter(model, curve / "final-F32", embeddings=False)
    reloaded = PeftModel.from_pretrained(load(folder, "F32"), str(curve / "final-F32")).eval()
    with torch.no_grad():
        assert abs(mean_loss(reloaded, rows_of(name))[0] - after) < 1e-5


if __name__ == "__main__":
    main()
