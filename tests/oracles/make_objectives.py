"""Losses, gradients and curves of TRL's preference objectives over the tiny models.

    python make_objectives.py VECTORS [--only NAME ...]

VECTORS  the folder that make_families.py and make_gradients.py filled. objectives/ is written beside each model's files: pairs.jsonl
         and feedback.jsonl (rows, already tokens), CASE.json (settings and one object per step) and CASE.safetensors (the
         gradients of the first step)

The losses are TRL's own: `DPOTrainer._compute_loss`, `KTOTrainer._compute_loss`, `CPOTrainer.get_batch_loss_metrics` and
`ORPOTrainer.get_batch_loss_metrics`, on trainers that were given their settings and nothing else, over batches that TRL's own
collators padded. The reference is the PEFT model with its adapter disabled. The loop around them is plain PyTorch: the adapter
of make_gradients.py, rows in the file's order, round and round; AdamW, constant rate, clipping by global norm, no dropout.
Versions: requirements.txt, and trl 1.16.0 with accelerate 1.15.0 and datasets 5.2.0. See README.md for the files.
"""

import argparse
import json
import warnings
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import torch
from accelerate import Accelerator
from peft import get_peft_model_state_dict

warnings.filterwarnings("ignore")
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer
from trl.experimental.utils import DPODataCollatorWithPadding
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference, KTOTrainer
from trl.trainer.utils import add_fused_lm_head

from make_gradients import attach
from pathlib import Path
from reference import MODELS, numbers, save, write_json

SETTINGS = dict(steps=12, window=4, learning_rate=2e-3, lr_schedule="constant", betas=[0.9, 0.999], epsilon=1e-8,
                weight_decay=0.0, max_grad_norm=1.0)
ROWS = 8
LABELS = [True, False, True, True, False, False, True, False]
MODELS_HERE = {"llama": "lora-attention", "qwen2": "lora-all"}  # and the adapter each begins with
CASES = {
    "dpo": dict(beta=0.1),
    "dpo-smooth": dict(beta=0.3, label_smoothing=0.2),
    "ipo": dict(beta=0.1),
    "orpo": dict(beta=0.1),
    "simpo": dict(beta=0.1, simpo_gamma=0.5),
    "simpo-paper": dict(beta=2.0, simpo_gamma=1.0, label_smoothing=0.1),
    "kto": dict(beta=0.1, desirable_weight=1.0, undesirable_weight=1.0),
    "kto-weighted": dict(beta=0.5, desirable_weight=1.0, undesirable_weight=1.5),
}


def rows_of(name):
    """Pairs and labelled rows: a good answer goes on with the prompt's motif, a bad one is noise."""
    draw, vocab = numbers(name, "objective rows"), MODELS[name]["vocab"] - MODELS[name].get("unused", 0)
    good = lambda motif, at, n: [int(motif[(at + t) % len(motif)]) for t in range(n)]
    bad = lambda n: [int(t) for t in draw.integers(0, vocab, n)]
    pairs, feedback = [], []
    for i in range(ROWS):
        motif, p = draw.integers(0, vocab, int(draw.integers(3, 7))), int(draw.integers(5, 15))
        c, r = int(draw.integers(4, 17)), int(draw.integers(3, 19))
        pairs.append(dict(prompt_ids=good(motif, 0, p), chosen_ids=good(motif, p, c), rejected_ids=bad(r)))
        motif, p, c = draw.integers(0, vocab, int(draw.integers(3, 7))), int(draw.integers(5, 15)), int(draw.integers(4, 17))
        feedback.append(dict(prompt_ids=good(motif, 0, p), completion_ids=good(motif, p, c) if LABELS[i] else bad(c),
                             label=LABELS[i]))
    return pairs, feedback


def bare(kind, **settings):
    """A trainer that knows its settings; nothing was loaded, prepared or wrapped."""
    trainer = kind.__new__(kind)
    for key, value in dict(accelerator=Accelerator(cpu=True), args=SimpleNamespace(gradient_checkpointing_kwargs=None),
                           aux_loss_enabled=False, _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
                           _total_train_tokens=0, _tp_size=1, ref_model=None, is_encoder_decoder=False,
                           **settings).items():
        setattr(trainer, key, value)
    return trainer


def loss_of(case, model):
    """loss(rows of a window) -> (loss, TRL's metrics)"""
    kind, options = case.split("-")[0], dict(CASES[case])
    if kind in ("dpo", "ipo"):
        loss_type = "ipo" if kind == "ipo" else "robust" if options.get("label_smoothing") else "sigmoid"
        trainer = bare(DPOTrainer, model=model, ld_alpha=None, precompute_ref_logps=False, loss_types=[loss_type],
                       loss_weights=[1.0], f_divergence_type="reverse_kl", use_weighting=False,
                       label_smoothing=options.pop("label_smoothing", 0.0), **options)
        collator = DataCollatorForPreference(pad_token_id=0)
    elif kind == "kto":
        trainer = bare(KTOTrainer, model=model, precompute_ref_logps=False, calculate_KL=True, loss_type="kto", **options)
        collator = DataCollatorForUnpairedPreference(pad_token_id=0)
    elif kind == "orpo":
        trainer = bare(ORPOTrainer, model=model, padding_value=0, pad_token_id=0, **options)
    else:
        trainer = bare(CPOTrainer, model=model, pad_token_id=0, loss_type="simpo", cpo_alpha=0.0, alpha=0.0,
                       label_smoothing=options.pop("label_smoothing", 0.0), **options)

    def with_metrics(window):
        if kind == "kto":  # as KTOTrainer._prepare_dataset: completions move on by one row
            before = [window[-1]] + window[:-1]
            window = [row | dict(KL_completion_ids=other["completion_ids"]) for row, other in zip(window, before)]
        trainer._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
        loss = trainer._compute_loss(model, collator(window), return_outputs=False)
        return loss, {k: v[-1] for k, v in trainer._metrics["eval"].items()}

    def of_batch(window):
        rows = []
        for row in window:
            one = {}
            for side in ("chosen", "rejected"):
                ids = row["prompt_ids"] + row[f"{side}_ids"]
                one[f"{side}_input_ids"], one[f"{side}_attention_mask"] = ids, [1] * len(ids)
                one[f"{side}_labels"] = [-100] * len(row["prompt_ids"]) + row[f"{side}_ids"]
            rows.append(one)
        batch = DPODataCollatorWithPadding(pad_token_id=0)(rows)
        return trainer.get_batch_loss_metrics(model, batch, train_eval="train")

    return with_metrics if kind in ("dpo", "ipo", "kto") else of_batch


def run(name, folder, case):
    adapter = MODELS_HERE[name]
    model = attach(name, folder, "F32", adapter, adapter)
    # what DPOTrainer and KTOTrainer do at their start; the metrics beside the loss need the further outputs
    add_fused_lm_head(model.get_base_model(), outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    target, (pairs, feedback) = folder / "objectives", rows_of(name)
    target.mkdir(exist_ok=True)
    for file, rows in (("pairs", pairs), ("feedback", feedback)):
        (target / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows, loss_of_window = feedback if case.startswith("kto") else pairs, loss_of(case, model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=SETTINGS["learning_rate"], betas=tuple(SETTINGS["betas"]),
                                  eps=SETTINGS["epsilon"], weight_decay=SETTINGS["weight_decay"])
    steps, window = [], SETTINGS["window"]
    kept = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected", "kl")
    for step in range(SETTINGS["steps"]):
        loss, metrics = loss_of_window([rows[(step * window + i) % len(rows)] for i in range(window)])
        optimiser.zero_grad()
        loss.backward()
        if step == 0:
            gradients = get_peft_model_state_dict(model, state_dict={k: p.grad for k, p in model.named_parameters()
                                                  if p.grad is not None}, save_embedding_layers=False)
            if name == "llama":
                save(target / f"{case}.safetensors", {k: v.numpy().copy() for k, v in gradients.items()},
                     f"TRL's {case}, PEFT fp32, eager attention, over F32.gguf read by gguf-py")
        norm = torch.nn.utils.clip_grad_norm_(trained, SETTINGS["max_grad_norm"])
        optimiser.step()
        steps.append(dict(step=step + 1, loss=float(loss), grad_norm=float(norm),
                          **{k: float(v) for k, v in metrics.items() if k in kept}))
    write_json(target / f"{case}.json", dict(adapter=adapter, settings=SETTINGS, numbers=CASES[case], steps=steps))
    print(f"{name:6} {case:12} loss {steps[0]['loss']:.5f} … {steps[-1]['loss']:.5f}  gradient norm {steps[0]['grad_norm']:.3f}  "
          f"margin {steps[0]['rewards/margins']:.3f} … {steps[-1]['rewards/margins']:.3f}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("vectors", type=Path)
    parser.add_argument("--only", nargs="*", choices=MODELS_HERE, default=list(MODELS_HERE))
    options = parser.parse_args()
    for name in options.only:
        for case in CASES:
            run(name, options.vectors / name, case)


if __name__ == "__main__":
    main()
