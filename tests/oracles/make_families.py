"""Tiny random models of every family: GGUF files from llama.cpp's converter, log-probabilities from transformers.

    python make_families.py OUT --llama-cpp DIR --quantize PATH [--only NAME ...]

OUT         one folder per model is written below it
--llama-cpp a llama.cpp source folder (convert_hf_to_gguf.py, conversion/, gguf-py/)
--quantize  its llama-quantize; needed only for the wide models

Versions: torch 2.15.0, transformers 5.23.0, tokenizers 0.23.3, sentencepiece 0.2.3, gguf 0.19.0, numpy 2.4.6 (requirements.txt).
Every number is seeded by the model's name. See README.md for the files.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from reference import (LENGTHS, MODELS, build, convert, describe, load, log_softmax, logits_of, numbers, read_gguf,
                       save, write_json, write_tokenizer)


def write_gguf(name, folder, llama_cpp, quantize):
    spec, model = MODELS[name], build(name)
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / name  # the converter takes general.name from the folder's name
        source.mkdir()
        model.save_pretrained(source)
        write_tokenizer(name, source)
        write_json(folder / "config.json", model.config.to_diff_dict())
        full = Path(scratch) / "F32.gguf"
        for kind in ["F32"] + [k for k in spec["gguf"] if k == "F16"]:
            convert(llama_cpp, "convert_hf_to_gguf.py", source, "--outfile", Path(scratch) / f"{kind}.gguf",
                    "--outtype", kind.lower(), pre=spec["text"])
        for kind in spec["gguf"]:
            made = Path(scratch) / f"{kind}.gguf"
            if kind not in ("F32", "F16"):
                subprocess.run([quantize, "--pure", full, made, kind, "1"], check=True, capture_output=True)
            (folder / made.name).write_bytes(made.read_bytes())
        # The road back must be exact: what the converter wrote, read by gguf-py, is what was built.
        _, weights, _ = read_gguf(full)
        for key, built in model.state_dict().items():
            if key != "lm_head.weight" or not model.config.tie_word_embeddings:
                assert np.array_equal(weights.pop(key), built.numpy()), key
        assert not weights, weights.keys()


def write_vectors(name, folder):
    draw = numbers(name, "tokens")
    sequences = [draw.integers(0, MODELS[name]["vocab"], n, dtype=np.int32) for n in LENGTHS]
    for kind in MODELS[name]["gguf"]:
        _, _, types = read_gguf(folder / f"{kind}.gguf")
        matrices = {t for n, t in types.items() if not n.endswith(("_norm.weight", ".bias")) and n != "rope_freqs.weight"}
        assert matrices == {kind}, matrices
        model, tensors, entropies, spread = load(folder, kind), {}, [], []
        for i, tokens in enumerate(sequences):
            logits = logits_of(model, tokens)
            tensors |= {f"tokens.{i}": tokens, f"logprobs.{i}": describe(logits, tokens), f"last.{i}": logits[-1]}
            scores = log_softmax(logits)
            entropies.append(-(np.exp(scores) * scores).sum(-1))
            spread.append(logits.std(-1))
        save(folder / f"{kind}.safetensors", tensors, f"transformers fp32, eager attention, over {kind}.gguf read by gguf-py")
        every = np.concatenate([tensors[f"logprobs.{i}"] for i in range(len(sequences))])
        print(f"{name:16} {kind:5} logits std {np.concatenate(spread).mean():5.2f}  entropy "
              f"{np.concatenate(entropies).mean():5.2f} nats  logprobs {every.min():7.2f} … {every.max():6.2f}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--llama-cpp", type=Path, help="without it the GGUF files already in OUT are used")
    parser.add_argument("--quantize", type=Path)
    parser.add_argument("--only", nargs="*", choices=MODELS, default=list(MODELS))
    options = parser.parse_args()
    for name in options.only:
        folder = options.out / name
        folder.mkdir(parents=True, exist_ok=True)
        if options.llama_cpp:
            write_gguf(name, folder, options.llama_cpp, options.quantize)
        write_vectors(name, folder)


if __name__ == "__main__":
    main()
