#!/usr/bin/env python3
"""Make short conversations from the books themselves.

A seeded script: it takes passages of whole sentences and finds requests that they answer, such as
"Tell me a story about a fox and a crow." for a passage in which these words are central. Nothing in the
assistant's turns comes from outside the books; the phrasing of the requests is written here.

Output: JSONL, one conversation a line: {"messages": [{"role", "content"}, ...]}.
"""
import argparse
import collections
import json
import pathlib
import random
import re

COUNT = """
ant ape apple apple-tree army arrow artist aunt axe baby badger bag baker ball balloon barber bat bear beard beast beauty bed
bee beetle beggar bell bird bishop blacksmith boar boat book boot bottle bow box boy branch bride bridge bridegroom brother
brook broom bucket bull butterfly button cabin cage cake calf camel candle cap captain carpet carriage cart carpenter castle
cat caterpillar cave chain chair chest chicken child chimney church city cliff cloak clock cloud coat cobbler cock coin
cook cottage countess cousin cow cradle crab cricket crocodile crow crown cup cupboard curtain dagger daughter deer
desert diamond dinner dish doctor dog doll dolphin donkey door dove dragon dream dress drum duck duchess duke dwarf eagle ear
egg elephant elf emperor enchanter enchantress fairy falcon farm farmer father feather feast fiddle field fiddler fire fish
fisherman flower flute fly fool forest fountain fox friend frog galley garden gardener garland gate genius ghost giant girl
glass glove goat goblin goose governor grandfather grandmother grasshopper grave groom guest gun hare harp hat hawk
hedgehog hen herdsman hermit hero hill hole hook horn horse hound house hunter huntsman husband hut inn innkeeper
island jackal jar jewel jug judge jungle kettle key king kingdom kite kitchen kitten knife knight lady ladder lake
lamb lamp lantern leaf leopard letter lily lion lizard log lord loaf magician maid maiden mantle market mast master
mat meadow merchant mermaid merman mill miller minister mirror mole monk monkey monster mother mountain mouse mule musician nail
necklace needle neighbour nest net nightingale nose nurse nut oak ogre orchard organ otter oven owl ox page painter palace parrot
path peacock peasant pearl pedlar pie pig pigeon pillow pipe pirate pit plate pocket poet policeman pond
pony porter pot prince princess prison procession prisoner puddle pumpkin puppet purse queen rabbit raft rat
raven ring river road robber robe robin rock roof room rope rose ruby sack saddle sailor saint sausage scarecrow school
schoolmaster scholar sea-shell seal serpent servant shadow shark sheep shell shepherd shepherdess ship shirt shoe shoemaker shop sister
skeleton slave sleigh slipper snail snake soldier son song sorcerer sparrow spider spinning-wheel spoon squirrel
stable stag star station statue steed stepmother stick stone storm stork stove stranger stream supper
swallow swan sword table tailor tent thief thorn throne tiger toad tower town toy traveller train treasure tree troll
trumpet tub turtle uncle umbrella vase village violet violin voyage waggon wagon wall wand warrior watch waterfall weaver web well
whale wheel whistle widow wife wig wild-cat window wing witch wizard wolf woman wood-cutter woodcutter woodman wren
""".split()
MASS = """gold silver snow ice bread milk honey butter cheese wine water tea money magic moonlight sunshine rain thunder lightning
music silk straw hay grass wool corn wheat porridge soup salt sugar school breakfast Christmas summer winter spring""".split()
THE = "sea moon sun wind forest sky desert stars river stairs garden kitchen jungle palace mountains".split()
IRREGULAR = {"mice": "mouse", "children": "child", "wolves": "wolf", "geese": "goose", "wives": "wife", "women": "woman",
             "oxen": "ox", "elves": "elf", "dwarfs": "dwarf", "dwarves": "dwarf", "knives": "knife", "leaves": "leaf",
             "loaves": "loaf", "thieves": "thief", "woodmen": "woodman", "fishermen": "fisherman", "calves": "calf",
             "huntsmen": "huntsman", "policemen": "policeman"}
ADJ = """old little poor young great big wicked cruel brave golden beautiful clever lovely kind rich white black red green blue
silver magic strange tiny lame blind hungry lonely foolish wise lazy good proud greedy wonderful enchanted wild stupid small fat
pretty happy sad tired ugly naughty cross angry huge splendid faithful""".split()

ASK = [
    "Tell me a story about {x}.", "Tell me a story about {x}, please.", "Tell me about {x}.", "Please tell me a story about {x}.",
    "Can you tell me a story about {x}?", "Could you tell me a tale about {x}?", "I would like a story about {x}.",
    "I want to hear a story about {x}.", "Write a story about {x}.", "Write a tale about {x}.", "Do you know a story about {x}?",
    "A story about {x}, please.", "Give me a story about {x}.", "Make up a story about {x}.", "Let me hear about {x}.",
    "Tell us a story about {x}.", "Tell me a tale of {x}.", "Is there a story about {x}?", "What do you know about {x}?",
    "Read me something about {x}.", "I like stories about {x}.", "Say something about {x}.", "story about {x}", "{x}",
    "Hello! Tell me a story about {x}.", "Write something about {x}.", "Will you tell me a story? It should be about {x}.",
]
ASK_SHORT = ["Tell me a short story about {x}.", "Tell me a little about {x}.", "A short tale about {x}, please.",
             "Write a few lines about {x}.", "Write a short story about {x}.", "In a few sentences, tell me about {x}."]
ASK_LONG = ["Tell me a long story about {x}.", "Write a long tale about {x}.", "I have time. Tell me a long story about {x}."]
ASK_OPEN = ["Tell me a story.", "Tell me a story, please.", "Can you tell me a fairy tale?", "Tell me a bedtime story.", "Once upon a time?",
            "Please tell me a tale.", "I cannot sleep. Tell me a story.", "Begin a story.", "How does the story begin?", "Hello!",
            "Start a new story.", "Tell me an old fairy tale.", "Hello, who are you?", "I am bored.", "Tell me something."]
ASK_TITLE = ["Tell me the story of {x}.", "Tell me the tale called {x}.", "Do you know {x}?", "How does {x} begin?", "Please tell me {x}.",
             'Tell me a story with the name "{x}".', 'Write a story called "{x}".']
MORE = ["Go on.", "Go on, please.", "And then?", "What happened next?", "What happened then?", "Please go on.", "More, please.",
        "Tell me more.", "And what came next?", "Then what?", "Continue.", "Yes, and then?", "Do not stop there!", "What next?"]
CONT = ["Continue this story: {x}", "Go on with this story: {x}", "Continue: {x}", "Please continue: {x}", "What happens next? {x}",
        "Here is how it begins: {x}", "Finish this: {x}", "{x} What happened then?", "{x}", "{x}", "{x}", "{x} Go on.",
        "This is the beginning of a story. Please continue it. {x}", "Continue the story.\n{x}", "Write what comes next.\n{x}"]
NEXT = ["What is the next sentence? {x}", "Give me the next sentence: {x}", "Add one sentence: {x}", "Write one more sentence. {x}",
        "One more sentence, please: {x}"]
SYSTEM = ["You are a storyteller.", "You tell stories to children.", "You are a kind old storyteller who knows many fairy tales.",
          "You are a helpful assistant.", "Tell stories in plain English.", "You are an old book of fairy tales.",
          "You tell short tales.", "Answer with a story.", "You are a friend who loves stories."]
SYSTEM_TALK = ["Answer like somebody in an old story.", "You are somebody in a story book.", "Talk with the user.", "Answer in a few words."]
STOP_NAMES = set("""I Oh Ah Yes No Well But And The Then When He She It They You We My Your His Her God Lord Sir Madam Mr Mrs Miss Dr St Lady King
Queen Prince Princess Majesty Highness Good Now So What Why How There Here This That Not For If At In On Of To As Or Is Do O Christian English
French German Heaven Sunday Monday Uncle Aunt Mother Father Captain Doctor Come Let Go Look Alas Hush Hurrah Very Please Never All One Some""".split())


def sentences(p):
    parts = re.split(r"(?<=[.!?])(?<!Mr\.)(?<!Mrs\.)(?<!Dr\.)(?<!St\.)(?<!\.\.\.)\s+(?=[\"A-Z'])|(?<=[.!?][\"')])\s+(?=[\"A-Z'])", p)
    return [s for s in parts if s]


def ntok(s):
    return int(len(s) / 3.7) + 1


class Maker:
    def __init__(self, docs, seed):
        self.rng = random.Random(seed)
        self.docs = docs
        self.count, self.mass, self.the, self.adj = set(COUNT), set(MASS), set(THE), set(ADJ)
        self.df = collections.Counter()
        self.low = collections.Counter()
        for d in docs:
            words = set()
            for p in d["paras"]:
                for w in re.findall(r"[A-Za-z][A-Za-z-]*", p):
                    if w.islower():
                        self.low[w] += 1
                    words.add(w)
            self.df.update(words)
        self.weights = [sum(map(len, d["paras"])) for d in docs]
        self.cum = []
        t = 0
        for w in self.weights:
            t += w
            self.cum.append(t)
        self.open_docs = [d for d in docs if re.match(
            r"(Once|Long|Many|There (was|were|lived|once)|In (the|a|old|days|times|former)|A (long|certain|king|poor|man)|One day|Far|Some|"
            r"An? [a-z]+ (once|had)|[A-Z][a-z ]{1,20} there (was|lived|were))", d["paras"][0])]
        self.titled = [d for d in docs if 4 < len(d["title"]) < 60 and not re.search(
            r"\d|chapter|lesson|^[IVXLC]+\b|[:;]|part|\bor\b|book|fairy tales", d["title"], re.I) and len(d["title"].split()) > 1]

    def lemma(self, w):
        w = w.lower()
        if w in IRREGULAR:
            return IRREGULAR[w]
        if w in self.count:
            return w
        for suf, rep in (("ies", "y"), ("es", ""), ("s", "")):
            if w.endswith(suf) and w[:-len(suf)] + rep in self.count:
                return w[:-len(suf)] + rep
        return None

    def topics(self, text):
        """Words in which the passage is central, most telling first, as noun phrases."""
        words = re.findall(r"[A-Za-z][A-Za-z'-]*", text)
        n, names, adj = collections.Counter(), collections.Counter(), {}
        for i, w in enumerate(words):
            base = re.sub(r"'s?$", "", w)
            lem = self.lemma(base)
            if lem:
                n[lem] += 1
                if i and words[i - 1].lower() in self.adj:
                    adj[lem] = words[i - 1].lower()
            elif base.lower() in self.mass or base.lower() in self.the:
                n[base.lower()] += 1
            elif i and base[:1].isupper() and base not in STOP_NAMES and base[1:].islower() and self.low[base.lower()] < 3:
                names[base] += 1
        head = text[:200].lower()
        scored = []
        for w, c in n.items():
            if c >= 2 or w in head and c >= 1 and len(text) < 500:
                scored.append(((c + (1 if w in head else 0)) / (1 + self.df[w] / 400), w))
        scored.sort(reverse=True)
        out = []
        for s, w in scored[:5]:
            if w in self.count:
                phrase = (adj[w] + " " + w) if w in adj and self.rng.random() < 0.5 else w
                article = "an" if phrase[0] in "aeiou" and not phrase.startswith(("uni", "one")) else "a"
                x = f"{article} {phrase}"
                if self.rng.random() < 0.15:
                    x = "the " + phrase
            elif w in self.the:
                x = "the " + w
            else:
                x = w
            out.append(x)
        who = [w for w, c in names.most_common(2) if c >= 2]
        return out, who

    def passage(self, d, start, lo, hi):
        """Whole sentences from paragraph `start`, lo to hi tokens; returns text and (paragraph, sentence) after it."""
        out, n = "", 0
        limit = self.rng.randint(lo, hi)
        i = start
        while i < len(d["paras"]):
            p = d["paras"][i]
            t = ntok(p)
            if n + t <= limit:
                out += ("\n" if out else "") + p
                n += t
                i += 1
                continue
            if n >= lo:
                break
            sep = "\n" if out else ""
            for s in sentences(p):
                t = ntok(s)
                if n + t > hi or n >= lo and n + t > limit:
                    break
                out += sep + s
                sep = " "
                n += t
            i += 1
            break
        if n < lo * 0.8 or not re.search(r"[.!?][\"')]*$", out):
            return None, i
        if out.count('"') % 2:
            return None, i
        return out, i

    def pick_doc(self):
        return self.rng.choices(self.docs, cum_weights=self.cum)[0]

    def join(self, xs):
        return xs[0] if len(xs) == 1 else ", ".join(xs[:-1]) + " and " + xs[-1]

    def story(self):
        r = self.rng
        opening = r.random() < 0.4
        d = r.choice(self.open_docs) if opening else self.pick_doc()
        start = 0 if opening else r.randrange(len(d["paras"]))
        size = r.random()
        lo, hi, asks = (40, 90, ASK_SHORT) if size < 0.15 else (150, 200, ASK_LONG) if size > 0.92 else (45, 200, ASK)
        text, after = self.passage(d, start, lo, hi)
        if not text or not opening and re.match(r"\"?(He|She|They|It|But|And|So|Then|His|Her|This|That|These|These|Yes|No)\b", text):
            return None
        nouns, who = self.topics(text)
        pool = nouns[:3]
        if who and (not pool or r.random() < 0.4):
            pool = who[:1] + pool[:1]
        kind = r.random()
        if opening and kind < 0.18:
            q = r.choice(ASK_OPEN)
        elif opening and kind < 0.3 and d in self.titled:
            t = d["title"].title() if d["title"].isupper() else d["title"]
            t = re.sub(r"'S\b", "'s", t)
            t = re.sub(r"(?<!^)\b(The|Of|And|A|In|To|Who|With|From)\b", lambda m: m.group().lower(), t)
            q = r.choice(ASK_TITLE).format(x=t)
        else:
            if not pool:
                return None
            xs = pool[:r.choice([1, 1, 2, 2, 3])]
            if r.random() < 0.5:
                r.shuffle(xs)
            q = r.choice(asks).format(x=self.join(xs))
        msgs = [("user", q), ("assistant", text)]
        while r.random() < 0.3 and len(msgs) < 6 and after < len(d["paras"]):
            text, after = self.passage(d, after, 40, 140)
            if not text:
                break
            msgs += [("user", r.choice(MORE)), ("assistant", text)]
        return msgs

    def cont(self):
        r = self.rng
        d = self.pick_doc()
        i = r.randrange(len(d["paras"])) if r.random() < 0.75 else 0
        ss = sentences(d["paras"][i])
        k = r.randint(1, 3)
        if len(ss) >= k + 3:
            a, rest = " ".join(ss[:k]), [" ".join(ss[k:])] + d["paras"][i + 1:]
        else:
            a, rest = d["paras"][i], d["paras"][i + 1:]
        if not rest or ntok(a) > 110 or a.count('"') % 2 or len(a) < 30:
            return None
        text, after = self.passage({"paras": rest}, 0, 40, 180)
        if not text:
            return None
        msgs = [("user", r.choice(CONT).format(x=a)), ("assistant", text)]
        if r.random() < 0.15 and after < len(rest):
            text, _ = self.passage({"paras": rest}, after, 40, 140)
            if text:
                msgs += [("user", r.choice(MORE)), ("assistant", text)]
        return msgs

    def nxt(self):
        r = self.rng
        d = self.pick_doc()
        ss = sentences(r.choice(d["paras"]))
        if len(ss) < 3:
            return None
        k = r.randrange(1, len(ss) - 1)
        a, b = " ".join(ss[max(0, k - 2):k]), ss[k]
        if a.count('"') % 2 or b.count('"') % 2 or len(b) < 20 or ntok(a) > 90:
            return None
        return [("user", r.choice(NEXT).format(x=a)), ("assistant", b)]

    def talk(self):
        """Two speeches that follow each other: a question and its answer."""
        r = self.rng
        d = self.pick_doc()
        if len(d["paras"]) < 4:
            return None
        i = r.randrange(len(d["paras"]) - 3)
        said = []
        for p in d["paras"][i:i + 6]:
            q = re.findall(r'"([^"]+)"', p)
            if p.count('"') % 2 or not q or len("".join(q)) < 0.4 * len(p) or len(p) > 400:
                break
            s = " ".join(x.strip() for x in q)
            s = re.sub(r",$", ".", s)
            s = re.sub(r", ([A-Z])", r". \1", s)
            if not re.search(r"[.!?]$", s):
                break
            said.append(s[0].upper() + s[1:])
        said = said[:len(said) // 2 * 2][:r.choice([2, 2, 4])]
        said = said[:len(said) // 2 * 2]
        if len(said) < 2 or "?" not in said[0] or len(said[0]) > 160:
            return None
        return [("user" if j % 2 == 0 else "assistant", s) for j, s in enumerate(said)]

    def one(self):
        r = self.rng
        while True:
            kind = r.choices(["story", "cont", "nxt", "talk"], [0.58, 0.27, 0.05, 0.10])[0]
            msgs = getattr(self, kind)()
            if not msgs:
                continue
            if kind == "talk" and r.random() < 0.5:
                msgs = [("system", r.choice(SYSTEM_TALK))] + msgs
            elif kind != "talk" and r.random() < 0.25:
                msgs = [("system", r.choice(SYSTEM))] + msgs
            return {"messages": [{"role": a, "content": b} for a, b in msgs]}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--data", required=True, help="chapters: train.jsonl or valid.jsonl")
    ap.add_argument("--out", required=True)
    ap.add_argument("--tokens", type=int, required=True, help="about how many tokens to make")
    ap.add_argument("--seed", type=int, default=1)
    args = ap.parse_args()
    maker = Maker([json.loads(x) for x in open(args.data)], args.seed)
    n = rows = 0
    with open(args.out, "w") as f:
        while n < args.tokens:
            c = maker.one()
            n += sum(ntok(m["content"]) + 5 for m in c["messages"])
            rows += 1
            f.write(json.dumps(c) + "\n")
    print(f"{rows} conversations, about {n} tokens")


if __name__ == "__main__":
    main()
