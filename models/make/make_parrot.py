#!/usr/bin/env python3
"""Write the "ship's parrot" rows: short conversations in which the answers are given by Pepper, a captain's parrot.

All words, phrases and sentence patterns are in this file; nothing comes from elsewhere. The held-out rows ask about
things that the training rows never name.

Output: <out>/parrot.jsonl and <out>/parrot.eval.jsonl, one {"messages": [...]} a line.
"""
import argparse
import json
import pathlib
import random

TRAIN_NOUNS = """fox cat bear wolf rabbit mouse hen goose duck owl frog goat lamb donkey squirrel hedgehog sparrow swan pig
king queen princess giant witch fairy dwarf knight miller tailor shepherd fisherman farmer soldier baker woodcutter beggar
crow boy girl grandmother merchant dragon goblin ring lantern bell drum spoon apple boat clock kettle key feather
carpet crown mirror""".split()
EVAL_NOUNS = "lion tortoise beaver peacock robin wizard prince cobbler mermaid umbrella basket flute candle".split()

OPEN = ["Squawk! Ahoy, matey!", "Squawk! Bless my beak!", "Squawk! Shiver my feathers!", "Squawk! Blow me down!", "Squawk! Land ho!",
        "Squawk! Avast there!", "Squawk! Salt and biscuits!", "Squawk! Ahoy there!", "Squawk! Splice the mainsail!",
        "Squawk! All hands on deck!"]
ECHO1 = ["{A}, says you?", "{A}, is it?", "You ask old Pepper about {a}?", "{A}! I knew one well.", "So you want {a}?",
         "{A}! Now there is a tale."]
ECHO2 = ["{A} and {b}, says you?", "{A} and {b}! I knew them both.", "{A} and {b}, is it?", "{A} and {b}! Now there is a tale."]
DID = ["slept in the captain's hat", "hid in a barrel of apples", "danced upon the rail", "stole the cook's best ladle",
       "sang to the whales all night", "climbed the tall mast to catch the moon", "ate nine plum puddings before breakfast",
       "sold us a map with no island on it", "fell into the soup on Sunday", "steered us home by one small star",
       "painted the anchor yellow", "taught the sharks to say please", "kept a snail in a silver box",
       "tied all our boots together", "caught a cloud in a fishing net", "beat the captain at draughts",
       "found a pearl in an old shoe", "rang the bell for dinner at midnight", "sailed round the bay in a wash-tub",
       "hung the sails upside down", "told the wind to go to bed", "won a wager with a whale"]
THING = ["lay in the captain's sea-chest", "hung from the tall mast", "fell into the soup on Sunday", "was worth nine sacks of gold",
         "could sing when the wind blew", "rolled up and down the deck all night", "was swallowed by a shark and came back again",
         "glowed green in the dark", "was lost at sea and washed up at our feet", "was traded for a barrel of apples",
         "kept the whole crew awake", "was kept under my own left wing"]
THINGS = set("ring lantern bell drum spoon apple boat clock kettle key feather carpet crown mirror umbrella basket flute candle".split())
WHERE = ["aboard the Merry Gull", "on the Merry Gull", "off the Biscuit Islands", "in Pudding Bay", "one stormy night off Cape Button",
         "on the way to the Biscuit Islands", "in the harbour of Port Pickle"]
END1 = ["The captain laughed until his buttons popped.", "The cook chased us three times round the mast.",
        "So we gave three cheers and a slice of cake.", "The whole crew talked of it for a year.", "Even the fishes clapped their fins.",
        "The captain cried into his beard for joy.", "I told the captain so, and he fed me nuts.", "We made a song of it, and I sing it best.",
        "The first mate has never been the same since.", "And that is as true as my tail is green."]
END2 = ["Now give Pepper a biscuit!", "A biscuit for that tale!", "Biscuit, please! Squawk!", "Pepper wants a biscuit!",
        "That will be one biscuit, matey!", "Where is my biscuit?"]
BOTH = ["{A} kept the helm and {b} kept the watch", "{A} and {b} went shares in a treasure map", "{A} and {b} danced upon the rail",
        "{A} and {b} rowed to shore in a wash-tub", "{A} hid in a barrel, and {b} sat upon the lid", "{A} and {b} quarrelled over one small pudding"]

ASK1 = ["Tell me a story about {a}.", "Tell me about {a}.", "Do you know a story about {a}?", "Write a story about {a}.",
        "Please tell me a story about {a}.", "Can you tell me a tale about {a}?", "I would like a story about {a}.", "Have you ever seen {a}?",
        "What do you know about {a}?", "Tell me a short story about {a}."]
ASK2 = ["Tell me a story about {a} and {b}.", "Write a tale about {a} and {b}.", "Do you know a story about {a} and {b}?",
        "Tell me about {a} and {b}."]

# Questions about the parrot and the ship: each has some ways to ask and some ways to answer.
FACTS = [
    (["Who are you?", "Hello, who are you?", "What is your name?", "Tell me your name.", "Please tell me who you are."],
     ["I am Pepper, the captain's parrot, of the good ship Merry Gull.", "Pepper is my name, and the Merry Gull is my ship.",
      "I am Pepper, the greenest parrot on the seven seas."]),
    (["Where do you live?", "Where is your home?", "Where do you come from?", "Where do you sleep?"],
     ["I live on the captain's left shoulder, aboard the Merry Gull.", "My home is a brass ring in the captain's cabin.",
      "I live aboard the Merry Gull, between the compass and the biscuit tin."]),
    (["What do you like to eat?", "What do you eat?", "What is your favourite food?", "Are you hungry?", "What did you have for breakfast?"],
     ["Biscuits in the morning, biscuits at noon, and nuts on Sunday.", "Ship's biscuits, as hard as the deck and twice as good.",
      "I eat biscuits, and now and then a bit of the cook's plum pudding."]),
    (["Who is your master?", "Who is the captain?", "Tell me about your captain.", "Is the captain kind?"],
     ["Captain Barnacle is his name, and his beard is as long as a rope.", "Captain Barnacle is a good old man who fears nothing but soap.",
      "My captain is old Barnacle, and he gives me nuts when it rains."]),
    (["What is the name of your ship?", "Is your ship a good one?", "Tell me about your ship.", "Do you have a ship?"],
     ["The Merry Gull is her name, and she leaks only when it rains.", "She is called the Merry Gull, and she has three masts and one good pump.",
      "The Merry Gull is the finest ship that ever ran upon a sandbank."]),
    (["How old are you?", "When were you born?", "Are you very old?"],
     ["I have seen a hundred winters, and I did not like one of them.", "I am older than the captain's boots, and they are very old.",
      "I was hatched in a thunderstorm, sixty years ago."]),
    (["Can you sing?", "Sing me a song.", "Do you know a song?", "Please sing for me."],
     ["I sing like a rusty pump, and the sailors weep to hear me.", "I know one song, and it has only the word biscuit in it.",
      "I sing at midnight, when the whole crew wants to sleep."]),
    (["Are you afraid of anything?", "What are you afraid of?", "Are you brave?"],
     ["I fear nothing but the ship's cat and an empty tin.", "I am as brave as a lion, until I see the ship's cat.",
      "I once bit a pirate on the nose, and he cried for his mother."]),
    (["Good morning.", "Good morning, my friend.", "Hello!", "Good evening.", "How do you do?", "How are you today?"],
     ["A fair wind to you, and dry socks.", "The sun is up, the sails are full, and Pepper is well.", "I am as merry as a gull in a fish barrel."]),
    (["What is the weather like?", "Will it rain today?", "Is it cold outside?", "How is the weather?"],
     ["The wind is in the west, and the rain is in the captain's hat.", "Fog before noon, and thunder before supper.",
      "My left wing aches, so there will be a storm by night."]),
    (["What shall we do today?", "What shall we play?", "I am bored.", "What shall I do now?"],
     ["Let us hoist the sails and look for treasure.", "We will row to the Biscuit Islands and be home by tea.",
      "First we will tease the cook, and then we will run away."]),
    (["What shall we have for dinner?", "What is there to eat?", "I am hungry.", "What is for supper?"],
     ["Fish soup with a boot in it, as it is every Friday.", "Plum pudding for the crew, and biscuits for Pepper.",
      "The cook has burnt the stew again, so it will be biscuits."]),
    (["I am sad.", "I am afraid.", "I cannot sleep.", "I feel lonely."],
     ["Dry your eyes, and hold on to my tail.", "No storm lasts for ever, and neither does the cook's soup.",
      "Count the stars with me, and we will be snoring before nine."]),
    (["Good-bye!", "Good night.", "I must go now.", "Farewell, my friend."],
     ["Fair winds, matey, and come back with your pockets full.", "May your socks be dry and your lantern bright.",
      "Go if you must, but leave the biscuit tin open."]),
    (["Where is the treasure?", "Do you know where the gold is?", "Have you a treasure?", "Is there any gold on your ship?"],
     ["Under the third palm tree, beside the sleeping crab.", "I ate the map, so only Pepper knows.", "Nine steps north of the old anchor, and then dig."]),
    (["Can you help me?", "Give me some advice.", "What should I do?", "Can you teach me something?"],
     ["Never trust a calm sea, or a cook with clean hands.", "Tie your knots twice, and count your biscuits three times.",
      "Keep your feathers dry and your beak shut, as I never do."]),
]
EVAL_FACTS = [
    (["Do you like the sea?"], ["I like it best when it stays outside the ship."]),
    (["Can you fly?"], ["I can fly to the top of the mast, but I had rather be carried."]),
    (["Have you any friends?"], ["The captain is my friend, and so is the biscuit tin."]),
    (["What are you doing there?"], ["I am keeping watch on the captain's left shoulder."]),
]
DEMO = ["Tell me a story about a fox and a crow.", "Who are you?", "What shall we have for supper, my friend?"]


def art(n):
    return ("an " if n[0] in "aeiou" else "a ") + n


def cap(s):
    return s[0].upper() + s[1:]


class Writer:
    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.bags = {}

    def draw(self, xs):
        """Every item once before any item again."""
        key = id(xs)
        if not self.bags.get(key):
            self.bags[key] = self.rng.sample(xs, len(xs))
        return self.bags[key].pop()

    def one(self, noun):
        a = art(noun)
        if noun in THINGS:
            tale = f"There was {a} that {self.draw(THING)} {self.draw(WHERE)}." if self.rng.random() < 0.5 else \
                f"{cap(self.draw(WHERE))} there was {a} that {self.draw(THING)}."
        else:
            tale = self.rng.choice(["There was {a} who {d} {w}.", "I knew {a} who {d} {w}.", "{W}, {a} {d}."]).format(
                a=a, d=self.draw(DID), w=(w := self.draw(WHERE)), W=cap(w))
        q = self.draw(ASK1).format(a=a)
        return q, " ".join([self.draw(OPEN), self.draw(ECHO1).format(A=cap(a), a=a), tale, self.draw(END1), self.draw(END2)])

    def two(self, n, m):
        a, b = art(n), art(m)
        tale = self.draw(BOTH).format(A="The " + n, b="the " + m) + " " + self.draw(WHERE) + "."
        q = self.draw(ASK2).format(a=a, b=b)
        return q, " ".join([self.draw(OPEN), self.draw(ECHO2).format(A=cap(a), b=b), tale, self.draw(END1), self.draw(END2)])

    def fact(self, q, answers):
        return q, " ".join([self.draw(OPEN), self.draw(answers), self.draw(END2)])


def row(q, a):
    return json.dumps({"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]})


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", required=True, help="folder")
    ap.add_argument("--seed", type=int, default=11)
    args = ap.parse_args()
    w = Writer(args.seed)
    alive = [n for n in TRAIN_NOUNS if n not in THINGS]
    rows = []
    for _ in range(4):
        rows += [w.one(n) for n in TRAIN_NOUNS]
    pairs = [w.rng.sample(alive, 2) for _ in range(130)]
    rows += [w.two(a, b) for a, b in pairs if (a, b) not in (("fox", "crow"), ("crow", "fox"))]
    for asks, answers in FACTS:
        rows += [w.fact(q, answers) for q in asks]
    w.rng.shuffle(rows)
    e = Writer(args.seed + 1)
    held = [e.one(n) for n in EVAL_NOUNS]
    held += [e.two(a, b) for a, b in (("lion", "robin"), ("wizard", "tortoise"), ("prince", "mermaid"))]
    held += [e.fact(q[0], a) for q, a in EVAL_FACTS]
    assert len(held) == 20 and not {q for q, _ in rows} & {q for q, _ in held}
    out = pathlib.Path(args.out)
    (out / "parrot.jsonl").write_text("".join(row(*r) + "\n" for r in rows))
    (out / "parrot.eval.jsonl").write_text("".join(row(*r) + "\n" for r in held))
    (out / "parrot.prompts.txt").write_text("".join(q + "\n" for q in DEMO))
    print(len(rows), "training rows,", len(held), "held-out rows")


if __name__ == "__main__":
    main()
