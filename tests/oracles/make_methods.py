"""The other methods of PyTorch + PEFT over the tiny models: gradients, and twenty optimiser steps.

    python make_methods.py VECTORS [--only NAME ...]

VECTORS  the folder that make_families.py and make_curves.py filled (the rows are those of curve/data.jsonl). Written beside each
         model's files: METHOD/ as make_gradients.py writes its cases; curve-METHOD/ with TYPE.json and, where the start is not
         made from the base alone, initial-TYPE/

The loss and the loop are those of make_gradients.py and make_curves.py.
Versions: torch 2.15.0, transformers 5.23.0, peft 0.21.2, gguf 0.19.0, numpy 2.4.6 (requirements.txt).
Every number is seeded by the model's name. See README.md for the files.
"""

import argparse

from pathlib import Path

import numpy as np
import torch
from peft import IA3Config, LoraConfig, VeraConfig, get_peft_model, get_peft_model_state_dict
from peft.optimizers import create_loraplus_optimizer

from make_curves import SETTINGS, rows_of
from make_gradients import LINEAR, masked_rows, mean_loss
from reference import MODELS, load, log_softmax, logits_of, numbers, save, save_adapter, write_json

MLP = ["gate_proj", "up_proj", "down_proj"]
LOW_RANK = dict(r=4, lora_alpha=8, target_modules=LINEAR)

METHODS = {
    "dora": lambda: LoraConfig(**LOW_RANK, use_dora=True, bias="none"),
    "ia3": lambda: IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    # gate and up share an input and scale it each their own way
    "ia3-all": lambda: IA3Config(target_modules=LINEAR, feedforward_modules=MLP),
    "vera": lambda: VeraConfig(r=8, target_modules=LINEAR, save_projection=True, projection_prng_key=7),
    "plus": lambda: LoraConfig(**LOW_RANK, bias="none"),
    "pissa": lambda: LoraConfig(**LOW_RANK, bias="none", init_lora_weights="pissa"),
    "olora": lambda: LoraConfig(**LOW_RANK, bias="none", init_lora_weights="olora"),
}
RATES = {"ia3": 1e-1, "vera": 2e-2, "plus": 5e-4}
RATIO = 16.0

GRADIENTS = {"llama": ["dora", "ia3", "ia3-all", "vera"], "llama-tied-bias": ["dora", "ia3-all", "vera"]}
CURVES = {
    "llama": {"F32": ["dora", "ia3", "vera", "plus", "pissa", "olora"]},
    "llama-wide": {"Q8_0": ["dora", "ia3", "vera", "pissa", "olora"], "Q4_K": ["dora", "ia3", "vera", "pissa", "olora"]},
}


def attach(name, folder, file, method, tag, b="random"):
    """The base under a layer: pairs drawn as make_gradients.py draws them, lengths and factors drawn around their starts; pairs
    that begin with a part of the base stay as PEFT makes them."""
    base = load(folder, file)
    config = METHODS[method]()
    if config.peft_type.value == "LORA":
        if "wide" in name:
            config.r, config.lora_alpha = 2, 4  # half the bytes to commit
        if method == "dora" and not base.config.tie_word_embeddings:
            config.target_modules = LINEAR + ["lm_head"]
    config.task_type, config.base_model_name_or_path = "CAUSAL_LM", name
    base.name_or_path = base.config._name_or_path = name
    model = get_peft_model(base, config)
    draw = numbers(name, tag)
    with torch.no_grad():
        for key, weight in sorted(dict(model.named_parameters()).items()):
            normal = torch.from_numpy(draw.standard_normal(tuple(weight.shape)).astype(np.float32))
            if "lora_magnitude_vector" in key:
                weight.mul_(1 + (0.0 if b == "zero" else 0.1) * normal)
            elif "ia3_l" in key or "vera_lambda" in key:
                weight.add_((0.0 if b == "zero" else 0.2) * normal)
            elif "lora_" in key and method not in ("pissa", "olora"):
                is_b = "lora_B" in key
                weight.copy_(((0.0 if b == "zero" else 0.15) if is_b else 1.0 / np.sqrt(weight.shape[1])) * normal)
    return model.eval()


def write_gradients(name, folder, method):
    target = folder / method
    target.mkdir(exist_ok=True)
    model = attach(name, folder, "F32", method, method)
    save_adapter(model, target, embeddings=False)
    rows = masked_rows(name)
    loss, trained = mean_loss(model, rows)
    loss.backward()
    # in the place of the numbers; what has no gradient is looked for too, and left out
    trained_names = {k for k, p in model.named_parameters() if p.requires_grad}
    with_gradients = model.state_dict() | {k: p.grad for k, p in model.named_parameters() if k in trained_names}
    gradients = get_peft_model_state_dict(model, state_dict=with_gradients, save_embedding_layers=False)
    gradients = {k: g for k, g in gradients.items() if k not in ("base_model.vera_A", "base_model.vera_B")}
    assert len(gradients) == len(trained_names)
    tensors = {key: value.numpy() for key, value in gradients.items()}
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in tensors.values()))
    double = sum(-log_softmax(logits_of(model, t))[np.arange(len(t) - 1), t[1:]][l[1:] != -100].sum() for t, l in rows) / trained
    assert abs(double - loss.item()) < 1e-5
    for i, (tokens, labels) in enumerate(rows):
        tensors |= {f"tokens.{i}": tokens, f"labels.{i}": labels, f"last.{i}": logits_of(model, tokens)[-1]}
    tensors |= {"loss": np.array([double]), "trained": np.array([trained], np.int32), "grad_norm": np.array([norm])}
    save(target / "gradients.safetensors", tensors, "PEFT fp32, eager attention, over F32.gguf read by gguf-py")
    print(f"{name:16} {method:8} loss {double:.4f} over {trained} tokens  gradient norm {norm:.3f}", flush=True)


def write_curve(name, folder, kind, method):
    start = "random" if method == "plus" else "zero"
    model = attach(name, folder, kind, method, f"curve {method}", start)
    curve, rows = folder / f"curve-{method}", rows_of(name)
    curve.mkdir(exist_ok=True)
    if method not in ("pissa", "olora"):
        save_adapter(model, curve / f"initial-{kind}", embeddings=False)
    trained = [p for p in model.parameters() if p.requires_grad]
    rate = RATES.get(method, SETTINGS["learning_rate"])
    betas, epsilon = tuple(SETTINGS["betas"]), SETTINGS["epsilon"]
    settings = SETTINGS | dict(learning_rate=rate, weight_decay=0.0)
    if method == "plus":
        settings["lora_plus_ratio"] = RATIO
        optimiser = create_loraplus_optimizer(model, torch.optim.AdamW, lr=rate, loraplus_lr_ratio=RATIO, betas=betas, eps=epsilon)
    else:
        optimiser = torch.optim.AdamW(trained, lr=rate, betas=betas, eps=epsilon, weight_decay=0.0)
    steps, window = [], SETTINGS["batch_size"] * SETTINGS["grad_accumulation"]
    for step in range(SETTINGS["steps"]):
        loss, tokens = mean_loss(model, [rows[(step * window + i) % len(rows)] for i in range(window)])
        optimiser.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, SETTINGS["max_grad_norm"])
        optimiser.step()
        steps.append(dict(step=step + 1, loss=loss.item(), tokens=tokens, lr=rate, grad_norm=norm.item()))
    with torch.no_grad():
        after, _ = mean_loss(model, rows)
    write_json(curve / f"{kind}.json", dict(base=f"{kind}.gguf", settings=settings, steps=steps, loss_after_all_rows=after.item()))
    losses = [s["loss"] for s in steps]
    print(f"{name:12} {kind:5} {method:8} loss {losses[0]:.4f} … {losses[-1]:.4f} (all rows after: {after:.4f})", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("vectors", type=Path)
    parser.add_argument("--only", nargs="*", choices=MODELS, default=list(MODELS))
    options = parser.parse_args()
    for name in options.only:
        folder = options.vectors / name
        for method in GRADIENTS.get(name, []):
            write_gradients(name, folder, method)
        for kind, methods in CURVES.get(name, {}).items():
            for method in methods:
                write_curve(name, folder, kind, method)


if __name__ == "__main__":
    main()
