#!/usr/bin/env python3
"""One optimiser step of PEFT's LoRA (rank 16, all linear layers) on a LLaMA-3.2-1B shape with random weights, on the CPU."""
import argparse
import json
import resource
import statistics
import time

ap = argparse.ArgumentParser(description=__doc__)
ap.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
ap.add_argument("--tokens", type=int, default=512)
ap.add_argument("--threads", type=int, default=2)
ap.add_argument("--steps", type=int, default=2)
args = ap.parse_args()

import torch  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

torch.set_num_threads(args.threads)
torch.manual_seed(0)
config = LlamaConfig(vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
                     num_key_value_heads=8, head_dim=64, tie_word_embeddings=True, max_position_embeddings=4096,
                     attn_implementation="sdpa", use_cache=False)
torch.set_default_dtype(getattr(torch, args.dtype))
model = LlamaForCausalLM(config)
torch.set_default_dtype(torch.float32)
model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, task_type="CAUSAL_LM", target_modules="all-linear"))
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
ids = torch.randint(0, config.vocab_size, (1, args.tokens))
seconds = []
for step in range(1 + args.steps):
    start = time.perf_counter()
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    seconds.append(time.perf_counter() - start)
print(json.dumps({"tokens_per_second": args.tokens / statistics.median(seconds[1:]),
                  "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
