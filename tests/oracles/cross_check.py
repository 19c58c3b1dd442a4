"""llama.cpp against the committed vectors: is the converters' road right, and how exact is a good engine on these files?

    python cross_check.py VECTORS --llama-cpp DIR --lib DIR [--only NAME ...]

VECTORS     the folder with one folder per model
--llama-cpp a llama.cpp source folder (headers)
--lib       a folder with its libllama.so and libggml*.so (a build with -DBUILD_SHARED_LIBS=ON)

Prints, for every GGUF file and every adapter.gguf, the greatest and the mean absolute difference over the log-probabilities of
the sequences' tokens, and over the last row of logits. Writes nothing below VECTORS. Versions: llama.cpp as in
llama-cpp-sys-2 0.1.161 (its ggml 0.26.0), numpy 2.4.6, safetensors 0.8.0 (README.md).
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from reference import MODELS, describe


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("vectors", type=Path)
    parser.add_argument("--llama-cpp", type=Path, required=True)
    parser.add_argument("--lib", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=MODELS, default=list(MODELS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        program, lib = Path(scratch) / "cross_check", options.lib.resolve()
        subprocess.run(["cc", "-O2", "-o", program, Path(__file__).with_suffix(".c"), f"-I{options.llama_cpp}/include",
                        f"-I{options.llama_cpp}/ggml/include", f"-L{lib}", "-lllama", "-lggml", "-lggml-base",
                        f"-Wl,-rpath,{lib}"], check=True)

        def compare(label, model, vectors, *adapter):
            wanted, scores, last = load_file(vectors), [], []
            for i in range(sum(key.startswith("tokens.") for key in wanted)):
                tokens = wanted[f"tokens.{i}"]
                ids, logits = Path(scratch) / "ids", Path(scratch) / "logits"
                ids.write_bytes(tokens.astype("<i4").tobytes())
                subprocess.run([program, model, ids, logits, *adapter], check=True)
                found = np.fromfile(logits, "<f4").reshape(len(tokens), -1)
                last.append(np.abs(found[-1] - wanted[f"last.{i}"]))
                if f"logprobs.{i}" in wanted:
                    scores.append(np.abs(describe(found, tokens) - wanted[f"logprobs.{i}"]))
            scores, last = np.concatenate(scores or [np.zeros(1)]), np.concatenate(last)
            print(f"{label:32} logprobs max {scores.max():.1e} mean {scores.mean():.1e}   "
                  f"last row max {last.max():.1e} mean {last.mean():.1e}", flush=True)

        for name in options.only:
            folder = options.vectors / name
            for kind in MODELS[name]["gguf"]:
                compare(f"{name} {kind}", folder / f"{kind}.gguf", folder / f"{kind}.safetensors")
            for adapter in sorted(folder.glob("*/adapter.gguf")):
                compare(f"{name} F32 + {adapter.parent.name}", folder / "F32.gguf",
                        adapter.parent / "gradients.safetensors", adapter)


if __name__ == "__main__":
    main()
