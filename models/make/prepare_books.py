#!/usr/bin/env python3
"""Clean the children's books and cut them into chapters.

Input:  a gzipped JSONL file, one book a line: {"id", "title", "author", "text"}.
Output: <out>/train.jsonl and <out>/valid.jsonl, one chapter or story a line:
        {"book", "title", "paras": [...]}, every paragraph one line of plain ASCII.

Left out: books whose authors are still protected where the term is life plus
70 years, a book of verse only, and books that another one contains.
"""
import argparse
import collections
import gzip
import hashlib
import json
import pathlib
import re
import unicodedata

# Still protected in life-plus-70 countries.
PROTECTED = {473, 2441, 2557, 3074, 4698, 4979, 4980, 5061, 5844, 14375, 15281, 16981}
# 10607 is verse only; 14407 and 14838 are inside 572.
SKIP = PROTECTED | {10607, 14407, 14838}
# A whole book and about one chapter in seventy are held out.
VALID_BOOKS = {11757}
VALID_ONE_IN = 62

FRONT = re.compile(
    r"\b(preface|contents|introduct\w*|introductory|illustrations|dedication|dedicated|notes?( and references)?"
    r"|list of|author'?s? note|to the reader|to my readers|transcriber\w*|publisher\w*|by the same author|plates"
    r"|copyright|exercises?|articulation|punctuation|errata|appendix|glossary|footnotes?|the wayside|bibliography)\b",
    re.I)
SLURS = re.compile(
    r"\b(nigg\w*|negro\w*|negress\w*|dark(y|ey|ies|eys)|pickanin\w*|coons?|injuns?|blackamoors?|chinam[ae]n|sambo|jew(s|ess|ish)?|"
    r"kaffirs?|hottentots?|savages|half-breeds?|squaws?|redskins?|gipsy|gypsies|gipsies|white m[ae]n'?s?)\b", re.I)
JUNK = re.compile(
    r"gutenberg|copyright|e-?text|transcri(bed|ber)|millennium fulcrum|http|www\.|\bisbn\b|all rights reserved|"
    r"illustrated by|illustration:|printed in|edition\b.*\b1[89]\d\d|&c\.? &c|_source_|_parallels?_|_remarks?_|\bcf\.|\bop\. cit|"
    r"\bvol\. |\bpp?\. ?\d|\bibid\b|\.{5}", re.I)
TIS = r"(?:[Tt]is|[Tt]was|[Tt]were|[Tt]will|[Tt]would|[Tt]isn|[Tt]wasn|[Ee]m|cause|bout|till|way|un|im|er|ave|pon|fraid|most|gainst|cept|spose|scuse|low|nd|cos)\b"


def ascii_fold(s):
    s = s.replace("\u00b4", "'").replace("\u2014", "--").replace("\u2013", "-").replace("\u2012", "-").replace("\u00a0", " ")
    s = s.replace("\u2026", "...").replace("\u00a3", "").replace("\u00e6", "ae").replace("\u00c6", "Ae").replace("\u0153", "oe").replace("\u00ae", "")
    return "".join(c for c in unicodedata.normalize("NFKD", s) if not unicodedata.combining(c))


def curl(s):
    """Give straight single quotes a direction."""
    s = re.sub(r"(^|[\s(\"\u201c\-\[])'(?=(?!" + TIS + r")[A-Za-z0-9\"])", "\\1\u2018", s)
    return s.replace("'", "\u2019")


def single_to_double(s):
    """'Speech' becomes "speech"; quotes inside it become single."""
    s = s.replace("\u201c", "\x01").replace("\u201d", "\x02")
    out, is_open = [], False
    for i, c in enumerate(s):
        prev, nxt = s[i - 1] if i else " ", s[i + 1] if i + 1 < len(s) else " "
        if c == "\u2018":
            if re.match(TIS, s[i + 1:i + 12]) or nxt.isspace():
                out.append("'")
            else:
                out.append('"')
                is_open = True
        elif c == "\u2019":
            if nxt.isalpha() or not is_open:
                # A stray close at a paragraph's end still belongs to speech.
                out.append('"' if not nxt.isalpha() and prev in ".,!?-" else "'")
            elif prev in ".,!?;:-)\x02":
                out.append('"')
                is_open = False
            else:
                rest = s[i + 1:]
                later = re.search(r"[.,!?;:-]\u2019(?![A-Za-z])|\u2018", rest)
                if later and "\u2018" not in later.group() and prev == "s":
                    out.append("'")
                else:
                    out.append('"')
                    is_open = False
        else:
            out.append(c)
    return "".join(out).replace("\x01", "'").replace("\x02", "'")


def quotes(text):
    """All speech in double straight quotes."""
    dq = text.count('"') + text.count("\u201c")
    if "\u2018" in text:
        sq = text.count("\u2018")
        mode_single = sq > 3 * dq
    else:
        sq = len(re.findall(r"(?:^|\s)'(?!" + TIS + r")[A-Z]", text))
        mode_single = sq > 3 * dq
    return mode_single


def straight(s):
    return s.replace("\u201c", '"').replace("\u201d", '"').replace("\u2018", "'").replace("\u2019", "'")


def is_heading(lines):
    t = " ".join(x.strip() for x in lines).strip()
    letters = [c for c in t if c.isalpha()]
    if not letters:
        return True
    if re.match(r"(chapter|part|book|lesson|story|section|canto|volume)\b[ .:]*([ivxlc]+|\d+|[a-z]+)\b", t, re.I) and len(t) < 90:
        return True
    if re.match(r"([IVXLC]+|\d+)\.?(\s|$)", t) and len(t) < 60 and not re.search(r"[a-z]{3,} [a-z]{3,} [a-z]{3,} [a-z]", t):
        return True
    upper = sum(c.isupper() for c in letters) / len(letters)
    if upper > 0.75 and len(t) < 120 and not (t[0] in "\"'\u201c\u2018" and t[-1] in "\"'\u201d\u2019"):
        return True
    if len(lines) <= 2 and len(t) < 70 and t[-1] not in ".,!?;:\"'\u201d\u2019-)" and t[0].isupper():
        words = re.findall(r"[A-Za-z][A-Za-z'\u2019-]*", t)
        big = sum(w[0].isupper() for w in words if len(w) > 3 or w[0].isupper())
        return big >= 0.6 * max(1, sum(1 for w in words if len(w) > 3 or w[0].isupper()))
    return False


def is_verse(lines, width):
    """Short or indented lines, each with a capital at its start."""
    if len(lines) < 2:
        ind = len(lines[0]) - len(lines[0].lstrip())
        return ind >= 4
    body = [x.strip() for x in lines]
    indented = sum(1 for x in lines if x.startswith("  "))
    if indented >= 0.6 * len(lines):
        return True
    caps = sum(1 for x in body if re.match(r"[\"'\u201c\u2018(]*[A-Z]", x))
    longest = max(map(len, body))
    if len(body) >= 3 and caps >= 0.85 * len(body) and longest < 0.85 * width:
        return True
    return len(body) >= 3 and max(map(len, body[:-1])) < 0.7 * width and caps >= 0.7 * len(body)


def clean_para(t, single):
    t = re.sub(r"\{.*?\}|\[.*?\]", "", t)
    t = re.sub(r"\s*\(\d+\)", "", t)
    t = re.sub(r"(?<=[.,;!?\"'a-z])\*+", "", t)
    t = re.sub(r"(?<![A-Za-z])=|=(?![A-Za-z])|\+|~|\|", "", t)
    t = re.sub(r"_([^_]*)_", r"\1", t).replace("_", "")
    t = re.sub(r"\d* ?(eclectic series|third reader|second reader)[.,]? ?\d*", "", t, flags=re.I)
    t = re.sub(r"(^|(?<=[.!?\"'])\s)\s*\d{1,2}\.\s+(?=[\"A-Z])", " ", t)
    t = re.sub(r"--+", "--", t)
    t = re.sub(r"\s+", " ", t).strip()
    t = re.sub(r"``|''", '"', t)
    if single:
        t = single_to_double(curl(t) if "\u2018" not in t else t.replace("'", "\u2019"))
    t = straight(ascii_fold(t))
    t = re.sub(r" *-- *", "--", t)
    t = re.sub(r"\s+([,.;:!?])(?!\.)", r"\1", t)
    t = re.sub(r"(?<=\d),(?=\s\d)", ",", t)
    t = re.sub(r"\. ?\. ?\.( ?\.)*", "...", t)
    t = re.sub(r"\s+", " ", t).strip()
    return t


def book_docs(book):
    text = book["text"].replace("\r", "")
    if book["id"] in (7439, 7885, 14241, 7128):
        # Stories first, then the editor's notes.
        cuts = [m.start() for m in re.finditer(r"\n\s*_?NOTES AND REFERENCES_?\.?\s*\n", text)]
        cuts = [c for c in cuts if c > 0.4 * len(text)]
        if cuts:
            text = text[:cuts[0]]
    if book["id"] == 2591:
        cut = text.rfind("THE BROTHERS GRIMM, Jacob")
        cut = cut if cut > 0 else text.rfind("*****")
        if cut > 0.8 * len(text):
            text = text[:cut]
    single = quotes(text)
    lines = [x for x in text.split("\n") if x.strip()]
    lens = sorted(len(x.strip()) for x in lines)
    width = lens[int(len(lens) * 0.7)]
    docs, cur, title = [], [], ""
    stats = collections.Counter()
    held = ""

    def flush():
        nonlocal cur
        # The last line may name the source of the tale.
        while cur and '"' not in cur[-1] and (len(cur[-1].split()) < 5 or len(cur[-1]) < 80 and re.search(
                r"\b(Par|Mme|Madame|Von|Aus|Grimm|Andersen|Perrault|Sebillot|Lang)\b", cur[-1])):
            stats["odd"] += len(cur.pop())
        if cur and not FRONT.search(title):
            docs.append((title, cur))
        elif cur:
            stats["front"] += sum(map(len, cur))
        cur = []

    for block in re.split(r"\n[ \t]*\n+", text):
        blines = [x.rstrip() for x in block.split("\n") if x.strip()]
        if not blines:
            continue
        raw = " ".join(x.strip() for x in blines)
        if re.fullmatch(r"[\s*.\-_+=~#|]*", raw):
            continue
        if is_heading(blines):
            h = straight(ascii_fold(re.sub(r"[_*]", "", raw)))
            h = re.sub(r"\s+", " ", h).strip(" .")
            if cur:
                flush()
                title = h
            else:
                title = (title + " " + h).strip() if not FRONT.search(title + " " + h) else h
            continue
        if JUNK.search(raw) or raw.count("|") > 1 or "  " in raw and re.search(r"\w {3,}\w", raw):
            stats["junk"] += len(raw)
            continue
        if re.match(r"[\[(*]\s*\d*\s*[\])]|\*|\[|_?Footnote|\(\d", raw):
            stats["note"] += len(raw)
            continue
        if is_verse(blines, width):
            stats["verse"] += len(raw)
            continue
        if re.search(r"\b[a-z]+'[a-z]+ +[a-z]+'", raw) and len(raw) < 160 and not re.search(r"[.!?]", raw):
            stats["wordlist"] += len(raw)
            continue
        p = clean_para(raw, single)
        if SLURS.search(p):
            stats["slur"] += len(p)
            continue
        if not re.search(r"[a-z]", p) or len(p) < 3:
            continue
        if held:
            # A page break or a picture had cut the paragraph in two.
            p = held + " " + p if p[0].islower() else p
            held = ""
        if len(p) < 90 and re.match(r"\(?\"?(From|Translated|Adapted|Told|Retold|Taken|Contes|Collected)\b", p):
            stats["odd"] += len(p)
            continue
        if not re.search(r"[.!?\"',:;)-]$", p):
            if len(p) > 40:
                held = p
            stats["odd"] += len(p)
            continue
        cur.append(p)
    flush()
    return docs, stats, single


def fix_caps(docs):
    """EMPHASIS and chapter-opening capitals to ordinary case, by how the word is written elsewhere."""
    low, cap = collections.Counter(), collections.Counter()
    for d in docs:
        for p in d["paras"]:
            for m in re.finditer(r"[A-Za-z]+", p):
                w = m.group()
                if w.islower():
                    low[w] += 1
                elif w[0].isupper() and w[1:].islower() and m.start() and p[m.start() - 2] not in ".!?\"":
                    cap[w.lower()] += 1
    roman = re.compile(r"[IVXLC]+$")

    def one(m, para):
        w, s = m.group(), m.start()
        if (roman.match(w) and w not in ("I", "MIX", "DID", "DIM", "MILD", "CIVIL", "LIVID")) or len(w) < 2 and w not in "A":
            return w
        if len(w) < 2:
            return w
        k = w.lower()
        start = s == 0 or re.search(r"(^|[.!?]\"? \"?|^\")$", para[max(0, s - 4):s]) is not None
        if start or cap[k] > low[k]:
            return w.capitalize()
        return k if low[k] else w.capitalize()

    for d in docs:
        d["paras"] = [re.sub(r"\b[A-Z]{2,}\b", lambda m, p=p: one(m, p), p) for p in d["paras"]]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--corpus", required=True, help="childrens-books.jsonl.gz")
    ap.add_argument("--out", required=True, help="folder for train.jsonl and valid.jsonl")
    ap.add_argument("-v", "--verbose", action="store_true")
    args = ap.parse_args()
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    docs, seen = [], set()
    with gzip.open(args.corpus, "rt", encoding="utf-8") as f:
        for line in f:
            book = json.loads(line)
            if book["id"] in SKIP:
                continue
            parts, stats, single = book_docs(book)
            kept = 0
            for title, paras in parts:
                fresh = []
                for p in paras:
                    key = hashlib.sha1(p.lower().encode()).digest()
                    if len(p) > 80 and key in seen:
                        continue
                    seen.add(key)
                    fresh.append(p)
                n = sum(map(len, fresh))
                if n < 200:
                    continue
                kept += n
                docs.append({"book": book["id"], "title": title, "paras": fresh})
            if args.verbose:
                print(book["id"], book["title"][:30], "kept", kept, "of", len(book["text"]), "single" if single else "", dict(stats))
    fix_caps(docs)
    files = {k: open(out / f"{k}.jsonl", "w") for k in ("train", "valid")}
    size = collections.Counter()
    for d in docs:
        h = int(hashlib.sha1(f'{d["book"]}/{d["title"]}/{d["paras"][0]}'.encode()).hexdigest(), 16)
        held = d["book"] in VALID_BOOKS or h % VALID_ONE_IN == 0
        k = "valid" if held else "train"
        size[k] += sum(map(len, d["paras"])) + len(d["paras"])
        size[k + "_docs"] += 1
        files[k].write(json.dumps(d) + "\n")
    print(dict(size))


if __name__ == "__main__":
    main()
