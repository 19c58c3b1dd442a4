#!/usr/bin/env python3
"""Onlay beside llama.cpp and PEFT: each row alternates both sides and prints medians and their ratio as Markdown.

    benches/compare.py --onlay target/release/onlay --llama DIR_OF_PROGRAMS --models DIR --name 1b decode prompt depth
    benches/compare.py --onlay … --peft PYTHON --models DIR --name 1b train instruct train-small
    benches/compare.py --onlay … --qvac PROGRAM --models DIR --name 1b train-128

Models are DIR/NAME.FORMAT.gguf. Rows: decode, prompt, depth, deep-prompt, together, batches, lora, mixed,
busy, small, train, instruct (one third of the tokens trained), train-small (110m, 4 rows of 256), train-128, growth,
quantize, open.
The opponents' programs are the user's own; nothing of them is built or shipped here. Standard library only.
"""
import argparse
import concurrent.futures
import contextlib
import json
import pathlib
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

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

    def server(self, kind, count, tokens, apart, port=8765):
        """llama.cpp's server: `count` requests together, each with a LoRA of its own or all with the same."""
        with tempfile.TemporaryDirectory() as t:
            loras = [pathlib.Path(t) / f"{i}.gguf" for i in range(count)]
            for lora in loras:
                lora.symlink_to(pathlib.Path(self.a.adapter).resolve())
            process = subprocess.Popen([pathlib.Path(self.a.llama) / "llama-server", "-m", self.model(kind), "-np", str(count), "-c",
                                        str(512 * count), "-t", str(self.a.threads), "--port", str(port), "--lora-init-without-apply",
                                        "--lora", ",".join(map(str, loras))], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

            def ask(i, n):
                body = {"prompt": [(7 * j + 13 * i) % 30000 + 5 for j in range(8)], "n_predict": n, "ignore_eos": True, "temperature": 0,
                        "lora": [{"id": i if apart else 0, "scale": 1.0}], "cache_prompt": False}
                request = urllib.request.Request(f"http://127.0.0.1:{port}/completion", json.dumps(body).encode(),
                                                 {"Content-Type": "application/json"})
                return json.load(urllib.request.urlopen(request, timeout=600))["tokens_predicted"]
            try:
                for _ in range(240):
                    with contextlib.suppress(urllib.error.URLError, ConnectionError):
                        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                        break
                    time.sleep(0.5)
                with concurrent.futures.ThreadPoolExecutor(count) as pool:
                    list(pool.map(ask, range(count), [4] * count))
                    start = time.perf_counter()
                    total = sum(pool.map(ask, range(count), [tokens] * count))
                    return total / (time.perf_counter() - start), None
            finally:
                process.kill()
                process.wait()

    def peft(self, dtype, tokens=512, more=()):
        d = lines([self.a.peft, HERE / "peft_step.py", "--dtype", dtype, "--tokens", tokens, "--threads", self.a.threads, *more])[-1]
        return d["tokens_per_second"], d["peak_bytes"]

    def train(self, kind, data, rows, name=None):
        """Tokens per second of one epoch over `data`, `rows` rows a step."""
        with tempfile.TemporaryDirectory() as t:
            d = lines([self.a.onlay, "train", self.model(kind, name), "--data", data, "-o", pathlib.Path(t) / "o.gguf", "--epochs", 1,
                       "--batch-size", rows, "--ctx", 1024, "--threads", self.a.threads, "--device", self.a.device, "--json"])[-1]
        return d["tokens_per_second"], None

    def qvac(self, kind, text):
        """Tokens per second of its progress line, which leaves opening out."""
        command = [self.a.qvac, "-m", self.model(kind), "-f", text, "-c", 128, "-b", 128, "-ub", 128, "-t", self.a.threads, "-fa", "off",
                   "--lora-rank", 16, "--lora-alpha", 32, "--num-epochs", 1, "--output-adapter", "adapter.gguf", "--lora-modules",
                   "attn_q,attn_k,attn_v,attn_o,ffn_gate,ffn_up,ffn_down", *([] if kind == "Q8_0" else ["--no-repack"])]
        with tempfile.TemporaryDirectory() as t:
            done = subprocess.run([str(c) for c in command], capture_output=True, text=True, cwd=t)
        shown = re.findall(r"train: \[.*?data=(\d+)/\d+.*?t=(\d+):(\d+):(\d+)", done.stdout + done.stderr)
        if not shown:
            sys.exit(f"{' '.join(map(str, command))}\n{done.stderr[-2000:]}")
        count, h, m, s = map(int, shown[-1])
        return 128 * count / (3600 * h + 60 * m + s), None


def rows_of(path, lengths, trained, vocabulary=30000):
    """Rows of tokens of no meaning, the last `trained` of each learned from."""
    dice = random.Random(1)
    with open(path, "w") as f:
        for n in lengths:
            ids = [dice.randrange(3, vocabulary) for _ in range(n)]
            first = n - round(n * trained)
            f.write(json.dumps({"input_ids": ids, "labels": [-100] * first + ids[first:]}) + "\n")
    return path


def row(repeats, name, sides, ours=1):
    """`sides`: (label, function) pairs; the first `ours` are ours, and of the others the best counts for each of them."""
    got = {label: [] for label, _ in sides}
    for _ in range(repeats):
        for label, f in sides:
            got[label].append(f())
    speed = {label: statistics.median(x[0] for x in all_) for label, all_ in got.items()}
    labels = [label for label, _ in sides]
    best = max(labels[ours:], key=speed.get)
    rest = ", ".join(f"{label} {speed[label]:.1f}" for label in labels[ours:])
    for label in labels[:ours]:
        ceiling = statistics.median(x[1] for x in got[label]) if got[label][0][1] else None
        share = f"{speed[label] / ceiling:.2f}" if ceiling else ""
        spread = max(x[0] for x in got[label]) / min(x[0] for x in got[label]) - 1
        what = name if ours == 1 else f"{name}, {label}"
        print(f"| {what} | {speed[label]:.1f} | {spread:.0%} | {share} | {rest} | **{speed[label] / speed[best]:.2f}×** |", flush=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("rows", nargs="+")
    ap.add_argument("--onlay", required=True)
    ap.add_argument("--llama", help="folder with llama-bench, llama-batched-bench, llama-quantize")
    ap.add_argument("--peft", help="a Python with torch, transformers and peft")
    ap.add_argument("--qvac", help="the program llama-finetune-lora of QVAC Fabric")
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
            apart = ("onlay", lambda: s.onlay("Q4_K_M", generate=32, more=(*worn, "--apart")))
            same = lambda: s.onlay("Q4_K_M", generate=32, more=worn)  # noqa: E731
            row(n, "8 sessions, 8 LoRAs, Q4_K_M", [apart, ("one LoRA", same)])
            if args.llama and (pathlib.Path(args.llama) / "llama-server").exists():
                for what, ours, own in (("8 LoRAs", apart[1], True), ("one LoRA", same, False)):
                    row(n, f"8 sessions, {what}, Q4_K_M", [("onlay", ours), ("llama.cpp's server", lambda own=own: s.server("Q4_K_M", 8, 32, own))])
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
            ours = [(f + again, lambda f=f, m=m: s.onlay(f, more=("--train", 512, *m)))
                    for f in ("Q8_0", "Q4_K_M") for again, m in (("", ()), (", layers again", ("--recompute",)))]
            row(n, "LoRA r16 step, 512 tokens", ours + [(f"PEFT {d}", lambda d=d: s.peft(d)) for d in ("float32", "bfloat16")], ours=4)
        elif r in ("instruct", "train-small"):
            dice = random.Random(1)
            small = r == "train-small"
            lengths, trained, per = ([256] * 32, 1, 4) if small else ([dice.randint(64, 448) for _ in range(16)], 1 / 3, 8)
            name, what = ("110m", "4 × 256") if small else (args.name, "masked rows, 8 a step")
            with tempfile.TemporaryDirectory() as t:
                data = rows_of(pathlib.Path(t) / "rows.jsonl", lengths, trained)
                row(n, f"LoRA r16, {name}, {what}", [(f, lambda f=f: s.train(f, data, per, name)) for f in ("Q8_0", "Q4_K_M")]
                    + [(f"PEFT {d} {c}", lambda d=d, c=c: s.peft(d, more=("--shape", name, "--data", data, "--rows", per, "--collate", c)))
                       for d in ("float32", "bfloat16") for c in (("padded",) if small else ("one", "pairs"))], ours=2)
        elif r == "train-128":
            with tempfile.TemporaryDirectory() as t:
                text = pathlib.Path(t) / "text.txt"
                text.write_text(" ".join(str(i) for i in range(120)))
                for f in ("Q8_0", "Q4_K_M"):
                    row(n, f"LoRA r16 step, 128 tokens, {f}", [("onlay", lambda f=f: s.onlay(f, more=("--train", 128))),
                                                              ("QVAC Fabric", lambda f=f: s.qvac(f, text))])
        elif r == "growth":
            # one side only: how the cost of a token grows with parameters and with what it looks back at
            print("\n| model, Q4_K_M | decode tok/s | prompt 512 tok/s |\n|---|---|---|")
            for m in sorted(pathlib.Path(args.models).glob("*.Q4_K_M.gguf"), key=lambda m: m.stat().st_size):
                name = m.name.split(".")[0]
                got = [statistics.median(s.onlay("Q4_K_M", name=name, **w)[0] for _ in range(n)) for w in ({"generate": 64}, {"prompt": 512})]
                print(f"| {name}, {m.stat().st_size / 1e6:.0f} MB | {got[0]:.1f} | {got[1]:.1f} |", flush=True)
            print(f"\n| depth, {args.name} Q4_K_M | decode ms/token | prompt 512 ms/token |\n|---|---|---|")
            for d in (0, 1024, 2048, 4096, 8192):
                got = [1000 / statistics.median(s.onlay("Q4_K_M", more=("-d", d), **w)[0] for _ in range(n))
                       for w in ({"generate": 16}, {"prompt": 512})]
                print(f"| {d} | {got[0]:.2f} | {got[1]:.3f} |", flush=True)
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
