#!/usr/bin/env python3
"""Onlay beside llama.cpp and PEFT: each row alternates both sides and prints medians and their ratio as Markdown.

    benches/compare.py --onlay target/release/onlay --llama DIR_OF_PROGRAMS --models DIR --name 1b decode prompt depth
    benches/compare.py --onlay … --peft PYTHON --models DIR --name 1b train

Models are DIR/NAME.FORMAT.gguf. Rows: decode, prompt, depth, deep-prompt, together, batches, lora, mixed,
busy, small, train, quantize, open.
The opponents' programs are the user's own; nothing of them is built or shipped here. Standard library only.
"""
import argparse
import contextlib
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).parent


def lines(command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr[-2000:]}")
    return [json.loads(x) for x in done.stdout.splitlines() if x.startswith("{")]


def timed(command):
    start = time.perf_counter()
    subprocess.run([str(c) for c in command], check=True, capture_output=True)
    return time.perf_counter() - start


@contextlib.contextmanager
def busy(cores):
    """Another program on every core."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        yield
    finally:
        for other in others:
            other.kill()


class Sides:
    def __init__(self, args):
        self.a = args

    def model(self, kind, name=None):
        return pathlib.Path(self.a.models) / f"{name or self.a.name}.{kind}.gguf"

    def onlay(self, kind, prompt=0, generate=0, more=(), name=None):
        """Tokens per second and ceiling of one test."""
        d = lines([self.a.onlay, "bench", self.model(kind, name), "-p", prompt, "-n", generate, "-r", 1,
                   "--threads", self.a.threads, "--device", self.a.device, "--json", *more])[-1]
        return d["tokens_per_second"], d["ceiling"]

    def llama(self, kind, prompt=0, generate=0, more=(), name=None):
        d = lines([pathlib.Path(self.a.llama) / "llama-bench", "-m", self.model(kind, name), "-p", prompt, "-n", generate,
                   "-r", 1, "-t", self.a.threads, "-o", "jsonl", *more])[-1]
        return d["avg_ts"], None

    def batched(self, kind, count, tokens):
        d = lines([pathlib.Path(self.a.llama) / "llama-batched-bench", "-m", self.model(kind), "-c", count * (tokens + 32),
                   "-npp", 16, "-ntg", tokens, "-npl", count, "-t", self.a.threads, "--output-format", "jsonl"])[-1]
        return d["speed_tg"], None

    def peft(self, dtype, tokens):
        d = lines([self.a.peft, HERE / "peft_step.py", "--dtype", dtype, "--tokens", tokens, "--threads", self.a.threads])[-1]
        return d["tokens_per_second"], d["peak_bytes"]


def row(repeats, name, sides):
    """`sides`: (label, function) pairs; the first is ours, the best of the others counts."""
    got = {label: [] for label, _ in sides}
    for _ in range(repeats):
        for label, f in sides:
            got[label].append(f())
    speed = {label: statistics.median(x[0] for x in all_) for label, all_ in got.items()}
    ours, others = sides[0][0], [label for label, _ in sides[1:]]
    best = max(others, key=speed.get)
    ceiling = statistics.median(x[1] for x in got[ours]) if got[ours][0][1] else None
    share = f"{speed[ours] / ceiling:.2f}" if ceiling else ""
    spread = max(x[0] for x in got[ours]) / min(x[0] for x in got[ours]) - 1
    rest = ", ".join(f"{label} {speed[label]:.1f}" for label in others)
    print(f"| {name} | {speed[ours]:.1f} | {spread:.0%} | {share} | {rest} | **{speed[ours] / speed[best]:.2f}×** |", flush=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("rows", nargs="+")
    ap.add_argument("--onlay", required=True)
    ap.add_argument("--llama", help="folder with llama-bench, llama-batched-bench, llama-quantize")
    ap.add_argument("--peft", help="a Python with torch, transformers and peft")
    ap.add_argument("--models", required=True)
    ap.add_argument("--name", default="1b")
    ap.add_argument("--adapter", help="a LoRA, for the row lora")
    ap.add_argument("--formats", default="Q4_K_M,Q4_0,Q6_K,Q8_0,F16")
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--device", default="cpu", help="where Onlay computes; llama.cpp's programs use what they were built for")
    ap.add_argument("--repeats", type=int, default=5)
    args = ap.parse_args()
    s, n = Sides(args), args.repeats
    formats = [f for f in args.formats.split(",") if s.model(f).exists()]
    print("| work | Onlay tok/s | spread | of ceiling | others tok/s | ratio to the best |\n|---|---|---|---|---|---|")
    repack = [("llama.cpp", ()), ("llama.cpp without repacking", ("--repack", 0))]
    for r in args.rows:
        if r == "decode":
            for f in formats:
                row(n, f"decode 128, {f}", [("onlay", lambda f=f: s.onlay(f, generate=128))]
                    + [(k, lambda f=f, m=m: s.llama(f, generate=128, more=m)) for k, m in repack])
        elif r == "prompt":
            for f in formats:
                row(n, f"prompt 512, {f}", [("onlay", lambda f=f: s.onlay(f, prompt=512))]
                    + [(k, lambda f=f, m=m: s.llama(f, prompt=512, more=m)) for k, m in repack])
        elif r == "depth":
            for d in (2048, 8192):
                row(n, f"decode 32 at depth {d}, Q4_K_M", [("onlay", lambda d=d: s.onlay("Q4_K_M", generate=32, more=("-d", d)))]
                    + [(f"llama.cpp fa={fa}", lambda d=d, fa=fa: s.llama("Q4_K_M", generate=32, more=("-d", d, "-fa", fa))) for fa in (0, 1)])
        elif r == "deep-prompt":
            row(n, "prompt 512 at depth 8192, Q4_K_M", [("onlay", lambda: s.onlay("Q4_K_M", prompt=512, more=("-d", 8192)))]
                + [(f"llama.cpp fa={fa}", lambda fa=fa: s.llama("Q4_K_M", prompt=512, more=("-d", 8192, "-fa", fa))) for fa in (0, 1)])
        elif r == "together":
            for f in ("Q4_K_M", "Q8_0"):
                row(n, f"8 sessions decode together, {f}", [("onlay", lambda f=f: s.onlay(f, generate=32, more=("--sessions", 8))),
                                                            ("llama.cpp", lambda f=f: s.batched(f, 8, 32))])
        elif r == "batches":
            for c in (2, 4, 8, 12, 16, 32, 64):
                row(n, f"{c} sessions decode together, Q4_K_M", [("onlay", lambda c=c: s.onlay("Q4_K_M", generate=16, more=("--sessions", c))),
                                                                ("llama.cpp", lambda c=c: s.batched("Q4_K_M", c, 16))])
        elif r == "mixed":
            worn = ("--adapter", args.adapter, "--sessions", 8)
            row(n, "8 sessions, 8 LoRAs, Q4_K_M", [("apart", lambda: s.onlay("Q4_K_M", generate=32, more=(*worn, "--apart"))),
                                                  ("one LoRA", lambda: s.onlay("Q4_K_M", generate=32, more=worn))])
        elif r == "busy":
            with busy(args.threads):
                row(n, "decode 64 on a busy machine, Q4_K_M", [("onlay", lambda: s.onlay("Q4_K_M", generate=64))]
                    + [(f"llama.cpp -t {t}", lambda t=t: s.llama("Q4_K_M", generate=64, more=("-t", t))) for t in (args.threads, 1)])
        elif r == "small":
            for name in ("5m", "135m"):
                for f in ("Q4_K_M", "Q8_0"):
                    for what in ({"generate": 128}, {"prompt": 512}):
                        row(n, f"{next(iter(what))} {next(iter(what.values()))}, {name} {f}",
                            [("onlay", lambda f=f, w=what, m=name: s.onlay(f, **w, name=m)),
                             ("llama.cpp", lambda f=f, w=what, m=name: s.llama(f, **w, name=m))])
        elif r == "lora":
            worn = ("--adapter", args.adapter)
            for f in ("Q4_K_M", "Q8_0"):
                for what in ({"generate": 128}, {"prompt": 512}):
                    row(n, f"LoRA worn, {next(iter(what))} {next(iter(what.values()))}, {f}",
                        [("with", lambda f=f, w=what: s.onlay(f, **w, more=worn)), ("own base", lambda f=f, w=what: s.onlay(f, **w))])
        elif r == "train":
            for f in ("Q8_0", "Q4_K_M"):
                row(n, f"LoRA r16 step, 512 tokens, {f}", [("onlay", lambda f=f: s.onlay(f, more=("--train", 512))),
                                                           ("onlay, layers again", lambda f=f: s.onlay(f, more=("--train", 512, "--recompute")))]
                    + [(f"PEFT {d}", lambda d=d: s.peft(d, 512)) for d in ("float32", "bfloat16")])
        elif r == "quantize":
            with tempfile.TemporaryDirectory() as t:
                out = pathlib.Path(t) / "q.gguf"
                ours = [args.onlay, "quantize", s.model("F16"), out, "Q4_K_M", "--overwrite", "--threads", args.threads]
                theirs = [pathlib.Path(args.llama or "") / "llama-quantize", s.model("F16"), out, "Q4_K_M", args.threads]
                size = s.model("F16").stat().st_size / 1e6
                row(n, "quantize F16 → Q4_K_M (MB/s)", [("onlay", lambda: (size / timed(ours), None)), ("llama.cpp", lambda: (size / timed(theirs), None))])
        elif r == "open":
            m = s.model("Q4_K_M")
            ours = [args.onlay, "run", m, "-p", "Hello", "-n", 1, "--temp", 0, "--threads", args.threads]
            theirs = [pathlib.Path(args.llama or "") / "llama-completion", "-m", m, "-p", "Hello", "-n", 1, "--temp", 0, "-t", args.threads, "-no-cnv"]
            row(n, "open to first token (1/s)", [("onlay", lambda: (1 / timed(ours), None)), ("llama.cpp", lambda: (1 / timed(theirs), None))])
        else:
            sys.exit(f"no row {r!r}")


if __name__ == "__main__":
    main()
