"""What the folder of any method holds: the gradient of every trained number, and a curve of twenty optimiser steps.

Used by make_bottlenecks.py, make_prompts.py, make_parts.py, make_products.py, make_dense.py and make_adalora.py. They hand in
a model and `named`, its trained numbers under the keys that they have in a file. The loss, the rows and the loop are those of
make_gradients.py and make_curves.py.
"""

from pathlib import Path

import numpy as np
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.numpy import load_file, save_file

from make_curves import SETTINGS, rows_of
from make_gradients import first_label, masked_rows, mean_loss
from reference import load, log_softmax, logits_of, save, write_json

PEFT = "PEFT fp32, eager attention, over F32.gguf read by gguf-py"
TORCH = "PyTorch fp32, eager attention, over F32.gguf read by gguf-py"
WIDE, KINDS = "llama-wide", ["Q8_0", "Q4_K"]  # a curve of every method, in fp32 over what gguf-py dequantizes; no gradients


def normal(draw, shape, deviation):
    """A tensor of N(0, deviation²) in f32."""
    return torch.from_numpy((deviation * draw.standard_normal(tuple(shape))).astype(np.float32))


def peft_named(model):
    """{file key: parameter} of everything that a PEFT model trains."""
    trained = {k: p for k, p in model.named_parameters() if p.requires_grad}
    named = get_peft_model_state_dict(model, state_dict=model.state_dict() | trained, save_embedding_layers=False)
    named = {k: p for k, p in named.items() if any(p is t for t in trained.values())}
    assert len(named) == len(trained), (sorted(named), sorted(trained))
    return named


def check_reload(name, folder, method, kind="F32"):
    """What PEFT reads back from the folder gives the logits that are stored beside it."""
    model = PeftModel.from_pretrained(load(folder, kind), str(folder / method)).eval()
    stored = load_file(folder / method / "gradients.safetensors")
    worst = max(np.abs(logits_of(model, stored[f"tokens.{i}"])[-1] - stored[f"last.{i}"]).max() for i in (0, 1))
    assert worst < 1e-5, (name, method, worst)


def save_numbers(folder, config, named):
    """An adapter in PEFT's two files, of a method that PEFT does not write."""
    Path(folder).mkdir(exist_ok=True)
    write_json(folder / "adapter_config.json", config)
    tensors = {key: np.ascontiguousarray(named[key].detach().numpy()) for key in sorted(named)}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def loss_in_f64(model, rows):
    """`mean_loss`, the softmax in f64."""
    total, trained = 0.0, 0
    for tokens, labels in rows:
        logits = logits_of(model, tokens)
        target = np.asarray(labels)[first_label(logits, tokens):]
        scores = log_softmax(logits[-len(target) - 1:-1])[np.arange(len(target)), np.maximum(target, 0)]
        total, trained = total - scores[target != -100].sum(), trained + int((target != -100).sum())
    return total / trained, trained


def norm_of(gradients):
    return np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients.values()))


def slope_error(model, named, gradients, rows, penalty):
    """How far the derivative of the f64 loss along the stored gradient, by central difference, is from the gradient's norm,
    relative to it. The model is left in f64, with its numbers as they were."""
    model.double()
    norm, losses = norm_of(gradients), []
    width = 2e-3 / max(norm, 0.1)  # wide enough for the parts that transformers computes in f32 whatever it is given
    starts = {key: p.data.clone() for key, p in named.items()}
    with torch.no_grad():
        for way in (width, -width):
            for key, p in named.items():
                p.data = starts[key] + way / norm * torch.from_numpy(gradients[key]).double()
            losses.append((mean_loss(model, rows)[0] + penalty(model)).item())
        for key, p in named.items():
            p.data = starts[key]
    return abs((losses[0] - losses[1]) / (2 * width) / norm - 1)


def nothing(_):
    return 0.0


def write_gradients(name, folder, method, model, named, made_by, penalty=nothing, instead=None, rows=None):
    """`METHOD/gradients.safetensors`. `penalty` is a term of the loss beside the cross-entropy; `instead()`, after the backward
    pass, gives the gradients to store where they are not those of `named`; `rows` are `masked_rows` where not given."""
    target = folder / method
    rows, base = masked_rows(name) if rows is None else rows, load(folder, "F32")
    loss, trained = mean_loss(model, rows)
    punished = penalty(model)
    (loss + punished).backward()
    assert all(p.grad is not None for p in named.values())
    tensors = {key: p.grad.numpy() for key, p in named.items()} if instead is None else instead()
    double, counted = loss_in_f64(model, rows)
    assert counted == trained and abs(double - loss.item()) < 1e-5
    moved, norm = 0.0, norm_of(tensors)
    gradients = {key: p.grad.numpy() for key, p in named.items()}
    for i, (tokens, labels) in enumerate(rows):
        last = logits_of(model, tokens)[-1]
        moved = max(moved, np.abs(last - logits_of(base, tokens)[-1]).max())
        tensors = tensors | {f"tokens.{i}": tokens, f"labels.{i}": labels, f"last.{i}": last}
    tensors |= {"loss": np.array([double]), "trained": np.array([trained], np.int32), "grad_norm": np.array([norm])}
    if penalty is not nothing:
        tensors["penalty"] = np.array([punished.item()])
    save(target / "gradients.safetensors", tensors, made_by)
    error = slope_error(model, named, gradients, rows, penalty)
    print(f"{name:16} {method:17} loss {double:.4f} over {trained} tokens  gradient norm {norm:.3f}, smallest tensor "
          f"{min(np.linalg.norm(g) for g in gradients.values()):.1e}; logits move by {moved:.2f}; slope off by {error:.0e}", flush=True)
    assert moved > 0.05 and error < 1e-4


def write_curve(name, folder, method, model, named, rate, kind="F32", penalty=nothing, after=None, more=None, rows=None):
    """`curve-METHOD/TYPE.json`. `penalty` as above; `after(step)` runs behind the optimiser's step, before the gradients are
    cleared, and gives what else the step's object says; `more` goes into the settings; `rows` are those of data.jsonl where not
    given."""
    curve, rows, trained = folder / f"curve-{method}", rows_of(name) if rows is None else rows, list(named.values())
    curve.mkdir(exist_ok=True)
    settings = SETTINGS | dict(learning_rate=rate, weight_decay=0.0) | (more or {})
    optimiser = torch.optim.AdamW(trained, lr=rate, betas=tuple(SETTINGS["betas"]), eps=SETTINGS["epsilon"], weight_decay=0.0)
    steps, window = [], SETTINGS["batch_size"] * SETTINGS["grad_accumulation"]
    with torch.no_grad():
        first, _ = mean_loss(model, rows)
    for step in range(SETTINGS["steps"]):
        loss, tokens = mean_loss(model, [rows[(step * window + i) % len(rows)] for i in range(window)])
        punished = penalty(model)
        optimiser.zero_grad()
        (loss + punished).backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, SETTINGS["max_grad_norm"])
        optimiser.step()
        steps.append(dict(step=step + 1, loss=loss.item(), tokens=tokens, lr=rate, grad_norm=norm.item())
                     | ({} if penalty is nothing else dict(penalty=punished.item())) | (after(step) if after else {}))
    with torch.no_grad():
        last, _ = mean_loss(model, rows)
    write_json(curve / f"{kind}.json", dict(base=f"{kind}.gguf", settings=settings, steps=steps, loss_after_all_rows=last.item()))
    losses, norms = [s["loss"] for s in steps], [s["grad_norm"] for s in steps]
    assert last < first - 0.1
    print(f"{name:16} {method:17} loss {losses[0]:.4f} … {losses[-1]:.4f} (all rows: {first:.4f}, after {last:.4f})  "
          f"gradient norm {min(norms):.2f} … {max(norms):.2f}", flush=True)
