"""Virtual tokens in front of a sequence, by PEFT: prompt tuning, P-tuning and prefix tuning: gradients, and twenty optimiser steps.

    python make_prompts.py VECTORS [--only METHOD ...]

VECTORS  the folder that make_families.py and make_curves.py filled. METHOD/ and curve-METHOD/ are written beside each model's
         files; a method with an encoder has encoder.safetensors too: PEFT stores only what the encoder makes.

What PEFT does with virtual tokens is asserted here, by a forward pass of transformers alone (`by_hand`).
Versions: requirements.txt. Every number is seeded. See README.md for the files.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from safetensors.numpy import load_file
from transformers import DynamicCache

from answers import KINDS, PEFT, WIDE, check_reload, norm_of, normal, write_curve, write_gradients
from make_curves import rows_of
from make_gradients import masked_rows
from reference import load, numbers, save, save_adapter

VIRTUAL, HIDDEN = 3, 16  # virtual tokens; width of the encoders
MODELS = {"llama": ["prefix", "prefix-projection", "prompt", "prompt-masked", "ptuning"], "qwen3": ["prefix"]}
OVER_WIDE = ["prefix", "prefix-projection", "prompt", "ptuning"]  # curves only
METHODS = {
    "prefix": lambda: PrefixTuningConfig(num_virtual_tokens=VIRTUAL),
    "prefix-projection": lambda: PrefixTuningConfig(num_virtual_tokens=VIRTUAL, prefix_projection=True, encoder_hidden_size=HIDDEN),
    "prompt": lambda: PromptTuningConfig(num_virtual_tokens=VIRTUAL),
    # the same with the first label of every row masked
    "prompt-masked": lambda: PromptTuningConfig(num_virtual_tokens=VIRTUAL),
    "ptuning": lambda: PromptEncoderConfig(num_virtual_tokens=VIRTUAL, encoder_hidden_size=HIDDEN),
}
RATES = {"prefix": 1e-1, "prefix-projection": 2e-2, "prompt": 1e-1, "prompt-masked": 1e-1, "ptuning": 2e-2}


def attach(name, folder, method, tag, kind="F32"):
    """(PEFT's model, {the encoder's name: parameter}, what the encoder made in every forward pass since)"""
    base, config = load(folder, kind), METHODS[method]()
    config.task_type, config.base_model_name_or_path = "CAUSAL_LM", name
    base.name_or_path = base.config._name_or_path = name
    model = get_peft_model(base, config).eval()
    encoder, draw, made = model.prompt_encoder["default"], numbers(name, tag), []
    named = dict(sorted(encoder.named_parameters()))
    with torch.no_grad():
        for key, p in named.items():
            if key == "embedding.weight":
                p.copy_(normal(draw, p.shape, 1.0))
            else:
                p.copy_(normal(draw, p.shape, 0.3 if "bias" in key else 1.5 / np.sqrt(p.shape[1])))
    assert len(named) == sum(p.requires_grad for p in model.parameters())

    def keep(_, __, output):
        if output.requires_grad:
            output.retain_grad()
            made.append(output)
    encoder.register_forward_hook(keep)
    return model, named, made


def save_encoder(folder, named, gradients=False):
    """The encoder's parameters, and their gradients under `gradient.`."""
    tensors = {key: p.detach().numpy() for key, p in named.items()}
    if gradients:
        found = {f"gradient.{key}": p.grad.numpy() for key, p in named.items()}
        tensors |= found | {"grad_norm": np.array([norm_of(found)])}
    save(folder / "encoder.safetensors", tensors, PEFT)


def by_hand(folder, method, first):
    """How far the stored logits are from those of transformers alone, with the numbers of the adapter's file in front and the
    tokens at the positions `first`, `first` + 1, …"""
    base, stored = load(folder, "F32"), load_file(folder / method / "gradients.safetensors")
    front = torch.from_numpy(load_file(folder / method / "adapter_model.safetensors")["prompt_embeddings"])
    layers, heads, worst = base.config.num_hidden_layers, base.config.num_key_value_heads, 0.0
    for i in (0, 1):
        tokens = torch.from_numpy(stored[f"tokens.{i}"]).long()[None]
        with torch.no_grad():
            if method.startswith("prefix"):
                # [virtual token][layer][key, value][head][number of the head]
                parts = front.view(VIRTUAL, layers, 2, heads, -1).permute(1, 2, 3, 0, 4).unsqueeze(2)
                cache = DynamicCache([(part[0], part[1]) for part in parts])
                positions = torch.arange(tokens.shape[1])[None] + first
                logits = base(input_ids=tokens, past_key_values=cache, position_ids=positions).logits[0]
            else:
                rows = torch.cat((front[None], base.get_input_embeddings()(tokens)), dim=1)
                positions = torch.arange(rows.shape[1])[None] + first - VIRTUAL
                logits = base(inputs_embeds=rows, position_ids=positions).logits[0]
        worst = max(worst, np.abs(logits[-1].numpy() - stored[f"last.{i}"]).max())
    return worst


def check_labels(model, name):
    """PEFT's own loss of a row counts the first token where logits stand before it, and only there."""
    for tokens, labels in masked_rows(name):
        row = [torch.from_numpy(np.asarray(x)).long()[None] for x in (tokens, labels)]
        with torch.no_grad():
            out = model(input_ids=row[0], labels=row[1])
            mask = model(input_ids=row[0], labels=row[1], attention_mask=torch.ones_like(row[0]))
        virtual = out.logits.shape[1] - len(tokens)
        assert virtual in (0, VIRTUAL)
        target = row[1][0] if virtual else row[1][0, 1:]
        mean = torch.nn.functional.cross_entropy(out.logits[0, -len(target) - 1:-1], target, ignore_index=-100)
        assert abs(mean - out.loss) < 1e-6 and abs(mask.loss - out.loss) < 1e-6


def first_masked(rows):
    return [(tokens, [-100, *map(int, labels[1:])]) for tokens, labels in rows]


def write_method(name, folder, method):
    target = folder / method
    masked = method == "prompt-masked"
    model, named, made = attach(name, folder, method, method)
    encoded = len(named) > 1
    save_adapter(model, target)

    def of_the_output():
        if encoded:
            save_encoder(target, named, gradients=True)
        return {"prompt_embeddings": sum(o.grad[0] for o in made if o.grad is not None).numpy()}
    rows = [(t, np.array(l, np.int32)) for t, l in first_masked(masked_rows(name))] if masked else None
    write_gradients(name, folder, method, model, named, PEFT, instead=of_the_output, rows=rows)
    check_reload(name, folder, method)
    assert by_hand(folder, method, VIRTUAL) < 1e-5 and (not method.startswith("prefix") or by_hand(folder, method, 0) > 1e-2)
    curve_of(name, folder, method, "F32")


def curve_of(name, folder, method, kind):
    curve, masked = folder / f"curve-{method}", method == "prompt-masked"
    model, named, _ = attach(name, folder, method, f"curve {method}", kind)
    check_labels(model, name)
    curve.mkdir(exist_ok=True)
    save_adapter(model, curve / f"initial-{kind}")
    if len(named) > 1:
        save_encoder(curve / f"initial-{kind}", named)
    write_curve(name, folder, method, model, named, RATES[method], kind, rows=first_masked(rows_of(name)) if masked else None,
                more=dict(first_labels="masked") if masked else None)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("vectors", type=Path)
    parser.add_argument("--only", nargs="*", choices=METHODS, default=list(METHODS))
    options = parser.parse_args()
    for name, methods in MODELS.items():
        for method in methods:
            if method in options.only:
                write_method(name, options.vectors / name, method)
    for method in OVER_WIDE:
        for kind in KINDS if method in options.only else []:
            curve_of(WIDE, options.vectors / WIDE, method, kind)


if __name__ == "__main__":
    main()
