"""LoRA gradients of PyTorch + PEFT over the tiny models, and the same adapters as GGUF by llama.cpp's converter.

    python make_gradients.py VECTORS --llama-cpp DIR [--only NAME ...]

VECTORS     the folder that make_families.py filled; each model's F32.gguf is the base. Folders lora-all/ and lora-attention/ are
            written beside it
--llama-cpp a llama.cpp source folder (convert_lora_to_gguf.py); without it no GGUF adapter is written

The loss is the mean cross-entropy over the trained tokens of two rows together; the rows run one by one, without padding.
Versions: torch 2.15.0, transformers 5.23.0, peft 0.21.2, gguf 0.19.0, numpy 2.4.6 (requirements.txt).
Every number is seeded by the model's name. See README.md for the files.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

from reference import MODELS, convert, load, log_softmax, logits_of, numbers, save, save_adapter

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LINEAR = ATTENTION + ["gate_proj", "up_proj", "down_proj"]

CASES = {
    # scale = alpha / r = 2 everywhere
    "lora-all": dict(r=4, lora_alpha=8, target_modules=LINEAR),
    # scale = alpha / sqrt(r), with a rank and an alpha of its own for some sites
    "lora-attention": dict(r=4, lora_alpha=8, target_modules=ATTENTION, use_rslora=True,
                           rank_pattern={"q_proj": 2, "layers.1.self_attn.v_proj": 6},
                           alpha_pattern={"k_proj": 3, "layers.0.self_attn.q_proj": 5}),
}
ROWS = (41, 23)  # lengths


def attach(name, folder, file, case, tag, b="random"):
    """The base under a LoRA whose A (and B, unless b is "zero") are drawn from `numbers(name, tag, …)`."""
    base = load(folder, file)
    options = dict(CASES[case])
    if "wide" in name:
        options |= dict(r=2, lora_alpha=4)  # half the bytes to commit
    if case == "lora-all" and not base.config.tie_word_embeddings:
        options["target_modules"] = LINEAR + ["lm_head"]
    config = LoraConfig(**options, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM", base_model_name_or_path=name)
    base.name_or_path = base.config._name_or_path = name  # what PEFT writes as the adapter's base
    model = get_peft_model(base, config)
    draw = numbers(name, tag)
    with torch.no_grad():
        for key, weight in sorted(dict(model.named_parameters()).items()):
            if "lora_" in key:
                normal = draw.standard_normal(tuple(weight.shape)).astype(np.float32)
                is_b = "lora_B" in key
                deviation = (0.0 if b == "zero" else 0.15) if is_b else 1.0 / np.sqrt(weight.shape[1])
                weight.copy_(torch.from_numpy((deviation * normal).astype(np.float32)))
    return model.eval()


def mean_loss(model, rows):
    """(loss, trained tokens): the mean over every trained token of every row. `labels[t]` is predicted at position t-1, so the
    first label of a row never counts, unless virtual tokens stand before it; -100 is not trained."""
    total, trained = 0.0, 0
    for tokens, labels in rows:
        logits = model(input_ids=torch.tensor([list(map(int, tokens))])).logits[0]
        target = torch.tensor(list(map(int, labels)))[first_label(logits, tokens):]
        total = total + torch.nn.functional.cross_entropy(logits[-len(target) - 1:-1], target, ignore_index=-100, reduction="sum")
        trained += int((target != -100).sum())
    return total / trained, trained


def first_label(logits, tokens):
    """The first token that anything predicts: 0 where the model puts virtual tokens in front, which have logits too."""
    return 1 if len(logits) == len(tokens) else 0


def masked_rows(name):
    """Two rows: the first masks a prefix as a prompt would, the second single tokens here and there but not its first."""
    draw, rows = numbers(name, "rows"), []
    for i, length in enumerate(ROWS):
        tokens = draw.integers(0, MODELS[name]["vocab"], length, dtype=np.int32)
        labels = tokens.copy()
        if i == 0:
            labels[:12] = -100
        else:
            labels[1:][draw.random(length - 1) < 0.3] = -100
        rows.append((tokens, labels))
    return rows


def write_case(name, folder, case, llama_cpp):
    target = folder / case
    target.mkdir(exist_ok=True)
    model = attach(name, folder, "F32", case, case)
    # PEFT copies the base's head into the file when the head is adapted. Real files have it, so one of ours has it.
    save_adapter(model, target, embeddings="auto" if name == "llama" else False)
    rows = masked_rows(name)
    loss, trained = mean_loss(model, rows)
    loss.backward()
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    gradients = get_peft_model_state_dict(
        model, state_dict={k: p.grad for k, p in model.named_parameters() if p.grad is not None}, save_embedding_layers=False)
    assert set(gradients) == set(state) and all("lora_" in key for key in gradients)
    tensors = {key: value.numpy() for key, value in gradients.items()}
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in tensors.values()))
    double = sum(-log_softmax(logits_of(model, t))[np.arange(len(t) - 1), t[1:]][l[1:] != -100].sum() for t, l in rows) / trained
    assert abs(double - loss.item()) < 1e-5
    for i, (tokens, labels) in enumerate(rows):
        tensors |= {f"tokens.{i}": tokens, f"labels.{i}": labels, f"last.{i}": logits_of(model, tokens)[-1]}
    with model.disable_adapter():
        moved = max(np.abs(logits_of(model, t)[-1] - tensors[f"last.{i}"]).max() for i, (t, _) in enumerate(rows))
    tensors |= {"loss": np.array([double]), "trained": np.array([trained], np.int32), "grad_norm": np.array([norm])}
    save(target / "gradients.safetensors", tensors, "PEFT fp32, eager attention, over F32.gguf read by gguf-py")
    print(f"{name:16} {case:15} loss {double:.4f} over {trained} tokens  gradient norm {norm:.3f}, smallest tensor "
          f"{min(np.linalg.norm(g) for k, g in tensors.items() if 'lora_' in k):.1e}; adapter moves logits by {moved:.2f}", flush=True)
    if llama_cpp and case == "lora-all":  # the converter writes one alpha and knows no rsLoRA: the other case would be wrong
        convert(llama_cpp, "convert_lora_to_gguf.py", target, "--base", folder, "--outtype", "f32",
                "--outfile", target / "adapter.gguf")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("vectors", type=Path)
    parser.add_argument("--llama-cpp", type=Path)
    parser.add_argument("--only", nargs="*", choices=MODELS, default=[n for n, m in MODELS.items() if m.get("gradients")])
    options = parser.parse_args()
    for name in options.only:
        for case in CASES:
            write_case(name, options.vectors / name, case, options.llama_cpp)


if __name__ == "__main__":
    main()
