#!/usr/bin/env python3
"""What layers of several kinds learn and forget: three data sets, one base, two cores, some twenty minutes.

    benches/proof.py --data FOLDER [--onlay target/release/onlay] [--base models/fable-15m.gguf] [--out FOLDER]
                     [--methods lora,dora,series,parallel,prefix,hft] [--sets stories,intents,equations] [--steps N]

FOLDER holds the public files that docs/proof.md names. Every training row that is also a test row is left out and counted. For each set
and method: held-out loss before and after, exact answers by greedy decoding where there is an answer, what the layer does to
text it was not trained on (loss, and KL to the base), numbers that learn, seconds and peak memory. Prints the table of docs/proof.md.
"""
import argparse, csv, gzip, io, json, random, re, subprocess, sys, time
from pathlib import Path

METHODS = {
    # what the command line is told; learning rates are the engine's own
    "lora": ["--method", "lora", "--rank", "16"],
    "dora": ["--method", "dora", "--rank", "16"],
    "series": ["--method", "series", "--rank", "16"],
    "parallel": ["--method", "parallel", "--rank", "16"],
    "prefix": ["--method", "prefix", "--virtual-tokens", "20"],
    "hft": ["--method", "hft"],
}
PROMPTS = {"intents": "Question: {}\nLabel:", "equations": "Problem: {}\nEquation:"}


def words(text):
    """What two rows are compared by."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def unpack(path):
    return gzip.open(path, "rt", encoding="utf-8").read()


def stories(data, rng):
    """TinyStories (generation): the first thousands of stories of its training text."""
    text = unpack(data / "corpus/tinystories-head.txt.gz")
    rows = [s.strip() for s in re.split(r"(?<!\n)\n(?!\n)", text)]  # paragraphs have an empty line between them, stories have none
    rows = [s for s in rows if 200 < len(s) < 1200]
    rng.shuffle(rows)
    return [{"text": s} for s in rows[:700]], [{"text": s} for s in rows[700:800]], None


def intents(data, rng):
    """BANKING77 (classification): the ten most frequent of its intents."""
    def read(name):
        return list(csv.DictReader(io.StringIO(unpack(data / f"classify/banking77.{name}.csv.gz"))))
    train, test = read("train"), read("test")
    count = {}
    for row in train:
        count[row["category"]] = count.get(row["category"], 0) + 1
    chosen = sorted(count, key=lambda c: (-count[c], c))[:10]
    def rows(all):
        return [(" ".join(r["text"].split()), r["category"].replace("_", " ")) for r in all if r["category"] in chosen]
    train, test = rows(train), rows(test)
    rng.shuffle(train), rng.shuffle(test)
    return train, test[:200], "intents"


def equations(data, rng):
    """MAWPS (structured output): a word problem, and the equation that solves it."""
    def read(name):
        all = json.loads(unpack(data / f"llm-adapters/mawps.{name}.raw.json.gz"))
        return [(" ".join(r["original_text"].split()), re.sub(r"\.0\b", "", r["equation"]).replace("x", "X")) for r in all]
    train, test = read("trainset"), read("testset")
    rng.shuffle(train), rng.shuffle(test)
    return train, test[:200], "equations"


SETS = {"stories": stories, "intents": intents, "equations": equations}


def control(data):
    """Fairy tales that no layer is trained on: what the base is good at."""
    rows = [json.loads(line) for line in unpack(data / "corpus/fairytaleqa-stories.jsonl.gz").splitlines()]
    rows = [r for r in rows if r["split"] == "test"]
    rows.sort(key=lambda r: r["name"])
    return [{"text": " ".join(r["text"].split())[:1200]} for r in rows[:20]]


def prepare(name, data, out):
    """Writes a set's files; how many training rows were test rows, and the test rows."""
    train, test, prompt = SETS[name](data, random.Random(1))
    key = (lambda r: words(r["text"])) if prompt is None else (lambda r: words(r[0]))
    seen = {key(r) for r in test}
    clean = [r for r in train if key(r) not in seen]
    def line(row):
        if prompt is None:
            return row
        return {"prompt": PROMPTS[prompt].format(row[0]), "completion": " " + row[1]}
    for part, rows in (("train", clean), ("test", test)):
        (out / f"{name}.{part}.jsonl").write_text("".join(json.dumps(line(r)) + "\n" for r in rows))
    return len(train) - len(clean), len(clean), [line(r) for r in test]


def run(args):
    done = subprocess.run(args, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, args))}\n{done.stderr}")
    return json.loads(done.stdout)


def exact(onlay, base, layer, rows):
    """The share of answers that are right to the last character."""
    right = 0
    for row in rows:
        args = [onlay, "run", base, "-p", row["prompt"], "-n", "40", "--temp", "0", "--json"]
        if layer:
            args += ["--adapter", layer]
        right += run(args)["text"].split("\n")[0].strip() == row["completion"].strip()
    return right / len(rows)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--data", type=Path, required=True)
    a.add_argument("--onlay", default="target/release/onlay")
    a.add_argument("--base", default="models/fable-15m.gguf")
    a.add_argument("--out", type=Path, default=Path("proof"))
    a.add_argument("--methods", default=",".join(METHODS))
    a.add_argument("--sets", default=",".join(SETS))
    a.add_argument("--steps", type=int, default=200)
    a.add_argument("--answers", type=int, default=100, help="test rows that are answered")
    a = a.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    held = a.out / "control.jsonl"
    held.write_text("".join(json.dumps(r) + "\n" for r in control(a.data)))
    begun, table = time.time(), []
    for name in a.sets.split(","):
        dropped, n, test = prepare(name, a.data, a.out)
        answers = test[: a.answers] if "prompt" in test[0] else None
        print(f"\n{name}: {n} training rows ({dropped} left out: they are test rows), {len(test)} test rows", flush=True)
        if answers:
            print(f"the base answers {exact(a.onlay, a.base, None, answers):.0%} exactly", flush=True)
        print("| method | numbers | held-out loss | exact | control loss | control KL | seconds | peak MiB |\n|---|---|---|---|---|---|---|---|")
        for method in a.methods.split(","):
            layer = a.out / f"{name}.{method}.gguf"
            said = run([a.onlay, "train", a.base, "--data", a.out / f"{name}.train.jsonl", "--eval-data", a.out / f"{name}.test.jsonl",
                        "--control", held, "--drop-overlap", "--max-steps", str(a.steps), "--batch-size", "8", "--seed", "1",
                        "--overwrite", "--json", "--no-samples", "-o", layer, *METHODS[method]])
            c = said["control"]
            share = f"{exact(a.onlay, a.base, layer, answers):.0%}" if answers else ""
            print(f"| {method} | {said['parameters']:,} | {said['eval_loss_before']:.3f} → {said['eval_loss_after']:.3f} | {share} "
                  f"| {c['loss_before']:.3f} → {c['loss_after']:.3f} | {c['kl']:.3f} | {said['seconds']:.0f} "
                  f"| {said['peak_rss_bytes'] / 2**20:.0f} |", flush=True)
            table.append({"set": name, "method": method, "exact": share, **said})
    (a.out / "proof.json").write_text(json.dumps(table, indent=1))
    print(f"\n{time.time() - begun:.0f} seconds in all")


if __name__ == "__main__":
    main()
