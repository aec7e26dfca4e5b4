#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the example texts: English prose drawn from a grammar, with facts that stay consistent inside a document.

Place in the pipeline: first step. Inputs: a split name, a seed, a size. Output: one UTF-8 text file.

    make_texts.py --split calibration --bytes 180000 --out texts/calibration.txt
    make_texts.py --split heldout     --bytes 180000 --out texts/heldout.txt
    make_texts.py --split training    --bytes 40000000 --out corpus/training.txt

A document is one of a dozen kinds (story, dialogue, letter, sums, puzzle, recipe, report, ...). Each kind draws a cast and a setting
first, then writes sentences about them, so that a reader who pays attention (a model with a context) predicts better than one who
does not. The splits share the grammar and most words; each also has names, places and things of its own (words.py), and its own
random stream, so a model meets words in the held-out text that it never saw in training, as it would in life.

Template language: {word} is a value fixed for this document, else a random word of that class; [x|y|z] is a choice, nested freely;
"a~ " becomes "a" or "an". Everything is drawn from one random.Random, so a (split, seed, size) names one text, byte for byte.
"""

import argparse
import random
import re

from words import SHARED, SPLITS

SEEDS = {"training": 1, "calibration": 2, "heldout": 3}


class Writer:
    """Expands templates. `fixed` holds the values that stay the same throughout the document being written."""

    def __init__(self, split, seed):
        self.rng = random.Random(f"{split}:{seed}")
        own = SPLITS[split]
        self.words = {name: words + own.get(name, []) for name, words in SHARED.items()}
        self.fixed = {}

    def pick(self, word_class):
        """A random word of the class, itself expanded: word lists may contain templates."""
        return self.expand(self.rng.choice(self.words[word_class]))

    def expand(self, text):
        # Innermost brackets first, one at a time: a choice that is not taken draws nothing from the classes inside it.
        while "[" in text:
            close = text.index("]")
            start = text.rindex("[", 0, close)
            text = text[:start] + self.rng.choice(text[start + 1:close].split("|")) + text[close + 1:]
        return re.sub(r"\{(\w+)\}", lambda m: str(self.fixed[m[1]]) if m[1] in self.fixed else self.pick(m[1]), text)

    def say(self, *templates):
        """One paragraph: the sentences of the templates, articles and capitals put right."""
        sentences = [re.sub(r'^"?[a-z]', lambda m: m[0].upper(), self.expand(t)) for t in templates if t]
        text = re.sub(r'(?<=[.!?] )"?[a-z]', lambda m: m[0].upper(), " ".join(sentences))
        return re.sub(r"\b([aA])~ ((?=[aeiouAEIOU]|hon|hour)(?!us[eu]))?", lambda m: m[1] + (" " if m[2] is None else "n "), text)

    def one_of(self, *templates):
        return self.rng.choice(templates)

    def some(self, low, high, *templates):
        """Between low and high different templates, in random order: the paragraphs of a document are never all alike."""
        n = min(self.rng.randint(low, high), len(templates))
        return self.rng.sample(templates, n)

    def maybe(self, chance, template):
        return template if self.rng.random() < chance else ""

    def cast(self, prefix="", **more):
        """Fixes one person: name, pronouns, work, manner. prefix tells people of one document apart."""
        girl = self.rng.random() < 0.5
        taken = {v for k, v in self.fixed.items() if k.endswith("name")}
        names = [n for n in self.words["girl" if girl else "boy"] if n not in taken]
        pronouns = ("she", "her", "her", "herself", "woman") if girl else ("he", "him", "his", "himself", "man")
        person = dict(zip(("he", "him", "his", "himself", "man"), pronouns))
        person.update(name=self.rng.choice(names), job=self.pick("job"), trait=self.pick("trait"), kin=self.pick("kin_girl" if girl else "kin_boy"))
        person.update(more)
        self.fixed.update({prefix + key: value for key, value in person.items()})

    def scene(self):
        """Fixes where and when: every kind of document mentions some of these more than once."""
        for key in ("town", "place", "season", "weather", "animal", "thing", "material", "color", "food", "feature"):
            self.fixed[key] = self.pick(key)


# ---- general prose: clauses that any document may use ----

ASIDE = ["which [nobody|hardly anyone|no one in {town}] had noticed", "which had once belonged to {his} {relative}", "so the story went",
         "as far as anyone could tell", "at least on [weekdays|Sundays|cold mornings]", "if the {job} was to be believed",
         "as {his} {relative} used to say", "which was [rare|odd|just as well|no small thing] for {season}"]

REASON = ["because the {feature} was {state}", "since nobody had [asked|thought] to {plain_act}", "so that the {job} could {plain_act}",
          "although {he} would rather have {done_act}", "even though it meant [waiting|walking home|starting again|giving up the {thing}]",
          "as if the whole of {town} were watching", "before the {weather_noun} came", "until {he} could no longer {plain_act}",
          "while the {animal} {animal_act}", "whenever {he} thought of the {feature}", "unless {he} was very much mistaken"]

OBSERVE = ["The {feature} {stood} {where}, {adj} and {adj}.", "{when}, the {color} {thing} {shone} in the {light}.",
           "A~ {adj} smell of {smell} [hung over|drifted from|filled|came from] the {place}.", "Somewhere {where} a~ {animal} {animal_act}.",
           "The {weather_noun} had [left|brought|covered|taken] the {adj} {path}, and {people} {people_act}.",
           "It was {weather}, and the {path} to the {place} was {state}.", "Behind the {feature} there were {few} {plural}, {adj} with age.",
           "From the {place} one could see the {feature}, {aside}.", "Everything about the {place} was {adj}, {aside}.",
           "The {light} fell on the {plural} [one by one|all at once|as it did every {day_part}].",
           "Nothing moved except a~ {animal} that {animal_act} {where}."]

THINK = ["{name} [thought|wondered|remembered|knew|believed|could not say] that the {thing} [was|had been] {state}, {reason}.",
         "{he} had never been {feeling} before, {reason}.", "It seemed to {him} that {people} {people_act} {how}.",
         "What {name} wanted, more than {wish}, was to {plain_act}.", "Being {trait}, {he} {did_act} {how}, {reason}.",
         "{name} {did_act}, then {did_act}, and at last {did_act}.", "{reason_cap}, {name} {did_act} {how}.",
         "Without {doing_act}, {he} told {himself}, there was no point in {doing_act}.",
         "The more {he} {did_act}, the more {feeling} {he} became.", "Neither the {weather_noun} nor the {job} could stop {him} from {doing_act}.",
         "If {he} {did_act} now, {he} reasoned, {people} would [laugh|understand|follow|complain|be grateful|say nothing]."]


def prose(w, low, high):
    """A paragraph of observations and thoughts about the fixed cast and scene."""
    w.fixed["aside"] = w.expand(w.one_of(*ASIDE))
    out = []
    for template in w.some(low, high, *OBSERVE, *THINK):
        w.fixed["aside"], w.fixed["reason"] = w.expand(w.one_of(*ASIDE)), w.expand(w.one_of(*REASON))
        w.fixed["reason_cap"] = w.fixed["reason"]
        out.append(w.expand(template))
    return w.say(*out)


# ---- kinds of document; each returns a list of paragraphs ----

def story(w):
    """Someone lacks something, someone else helps, the thing is found where an early sentence hinted."""
    w.cast(), w.cast("b_"), w.scene()
    w.fixed.update(lost=w.pick("thing"), hiding=w.pick("where"), gift=w.pick("food"), helper=w.pick("animal"), count=w.rng.randint(2, 9))
    w.fixed["hiding_cap"] = w.fixed["hiding"]
    pages = [w.say(w.one_of(
        "Once, in the town of {town}, there lived a~ {trait} {job} called {name}.",
        "{name} was a~ {job} in {town}, and a~ {trait} one.",
        "[Many years ago|Long ago|In the year of the great {weather_noun}|Not so long ago], a~ {trait} young {man} named {name} came to {town} to work as a~ {job}.",
        "Everyone in {town} knew {name}, the {trait} {job} who lived beside the {place}."),
        w.one_of("{he} owned a~ {color} {lost} made of {material}, and {he} was {feeling} whenever {he} looked at it.",
                 "{his} {relative} had left {him} nothing but {count} {plural} and a~ {adj} {lost}.",
                 "Of all {his} things, {he} loved best a~ {adj} {lost} that {his} {relative} had brought from {town_b}."),
        w.maybe(0.6, "With {him} lived a~ {adj} {helper} that {animal_act} [all day|every {day_part}|whenever it rained]."))]
    pages.append(prose(w, 2, 4))
    pages.append(w.say(
        "{when}, the {lost} was gone.", w.one_of(
            "{name} looked [under the bed|behind the {feature}|in every drawer|beside the stove], but [there was no {lost}|it was not there|all {he} found was a~ {thing}].",
            "{he} searched the {place} from end to end, {reason}.", "At first {name} thought that {people} had taken it."),
        w.one_of('"Have you seen my {lost}?" {he} asked the {job_b}.', '"Who would take a~ {lost}?" {he} {said}.', '"It cannot have walked away," {said} {name} {how}.'),
        w.one_of('"Not since {day}," came the answer.', '"Ask {b_name}," {said} the {job_b}. "{b_he} sees everything."',
                 '"A~ {lost}? In this {weather_noun}?" The {job_b} shook {his_b} head.')))
    pages.append(w.say(
        w.one_of("So {name} went to {b_name}, a~ {b_trait} {b_job} who {did_act_b}.", "{b_name}, the {b_job}, was {doing_act} when {name} came in.",
                 "The only person who could help was {b_name}, {his} {b_kin}, a~ {b_trait} {b_job}."),
        '"{greet}, {b_name}," {said} {name}. "I have lost my {lost}."',
        w.one_of('"Then we must look where nobody looks," {said} {b_name}.', '"When did you last see it?" {b_name} asked {how}.',
                 '"I will help you," {b_he} {said}, "if you [give me|bring me|share with me] {some} {gift}."'),
        w.one_of("{name} {did_act}, and {b_name} {did_act}.", "They set out together {reason}.", "{b_name} put down the {thing} and {did_act}.")))
    if w.rng.random() < 0.5:
        pages.append(prose(w, 2, 3))
    pages.append(w.say(
        w.one_of("They walked for {count} {time_unit}, past the {feature} and over the {path}.", "First they looked {where}, then {where}, and then {where}.",
                 "The {helper} went ahead and {animal_act}."),
        w.one_of("{hiding_cap} {b_name} stopped.", "It was {b_name} who saw it first.", "All at once the {helper} {animal_act} and would not go on."),
        "There, {hiding}, [lay|stood|was|shone] the {lost}[, none the worse for the {weather_noun}|, covered in dust|, {state} but whole|].",
        w.one_of('"I must have left it here on {day}," {said} {name}, and {b_he} laughed.', '"Somebody wanted us to find it," {said} {b_name}.',
                 '{name} was so {feeling} that {he} could only say, "Thank you, {b_name}."', '"A~ {trait} {job} should take better care," {said} {b_name} {how}.')))
    pages.append(w.say(
        w.one_of("That evening {name} and {b_name} ate {gift} {where}.", "{name} gave {b_name} {some} {gift}, as {he} had promised.",
                 "From that day on, {name} kept the {lost} {where}."),
        w.one_of("And the {helper} {animal_act}, as it always had.", "{people_cap} still tell the story in {town}.",
                 "{name} never lost the {lost} again, {reason}.", "It was, they agreed, {some_praise}.")))
    return pages


def dialogue(w):
    """Two people disagree about a plan and come to terms; who says what stays in character."""
    w.cast(), w.cast("b_"), w.scene()
    w.fixed.update(plan=w.pick("plain_act"), cost=w.rng.randint(3, 90))
    turns = [('"{greet}, {b_name}. {ask}"', '"{answer}," {said} {b_name}.'),
             ('"Do you remember the {job} from {town_b}?" {name} asked.', '"The one with the {color} {thing}? {answer}."'),
             ('"I have decided to {plan}," {said} {name}.', '"{why_not}," {said} {b_name}. "{doubt}"'),
             ('"It would cost {cost} {coin}s," {b_name} {said} {how}.', '"Then I will sell the {thing}," {name} answered. "{answer}."'),
             ('"What do you think of the {feature}?"', '"{opinion}," {said} {b_name}, "but I would not {plain_act} there."'),
             ('"{people_cap} say that the {job} {did_act}."', '"{people_cap} say many things. {doubt}"'),
             ('{name} {did_act}. "You are always so {b_trait}, {b_name}."', '"And you are too {trait} for {town}," {b_he} {said}.'),
             ('"If we {plan} on {day}, who will feed the {animal}?"', '"My {relative} will. {answer}."'),
             ('"Is it true that you {did_act} {when_short}?" asked {b_name}.', '"[Only once|Twice|Never|Of course], and {reason}," {said} {name}.')]
    pages = [w.say(w.one_of("{name} and {b_name} met {where}.", "{name} found {b_name} {where}, {doing_act}.", "It was {weather} when {b_name} knocked at the door."))]
    for first, second in w.some(4, 8, *turns):
        w.fixed["reason"] = w.expand(w.one_of(*REASON))
        pages += [w.say(first), w.say(second)]
    pages.append(w.say(w.one_of("They said no more about it.", "In the end {name} agreed to {plan}, and {b_name} [laughed|sighed|poured the tea|shook {his} hand].",
                                "{b_name} {did_act} {how}, and {name} went home {reason}.")))
    return pages


FIRST_PERSON = {"he": "I", "him": "me", "his": "my", "himself": "myself"}


def letter(w):
    w.cast(), w.cast("b_"), w.scene()
    w.fixed["number"] = w.rng.randint(2, 28)
    w.fixed.update(FIRST_PERSON)
    body = ["I arrived in {town} [safely|late|on {day}|after {number} hours on the road], and the {place} is {adj}, {aside}.",
            "You asked about the {thing}: it is {state}, and the {job} wants {number} {coin}s for it.",
            "The {weather_noun} has been {adj} all {season}; {people} {people_act}.", "My {relative} {did_act} and sends you {some} {food}.",
            "Yesterday I {did_act} with a~ {job} who {did_act}, {reason}.", "There is a~ {animal} here that {animal_act} every {day_part}.",
            "I do not know whether I shall {plain_act} or {plain_act}; what would you do?", "Please send the {color} {thing} and {number} {plural} [before {day}|by the next boat|when you can]."]
    text = []
    for template in w.some(3, 6, *body):
        w.fixed["aside"], w.fixed["reason"] = w.expand(w.one_of(*ASIDE)), w.expand(w.one_of(*REASON))
        text.append(w.expand(template))
    return [w.say("{town}, {number} {month}"), w.say("Dear {b_name},"), w.say(*text), w.say(*w.some(1, 2, *OBSERVE)),
            w.say("[Write soon|Keep well|Give my love to your {relative}|Do not worry about me]."), w.say("[Your friend|Yours|With love|As ever],"), w.say("{name}")]


def sums(w):
    """Word problems in one to four steps. The answers are right, so a model that counts does better."""
    pages = []
    for _ in range(w.rng.randint(2, 5)):
        w.fixed = {}
        w.cast(), w.cast("b_")
        a, b, c, d = w.rng.randint(3, 60), w.rng.randint(2, 40), w.rng.randint(2, 9), w.rng.randint(2, 6)
        w.fixed.update(a=a, b=b, c=c, d=d, things=w.pick("plural"), total=a + b, left=a + b - min(c, a), c2=min(c, a), product=a * c, box=a * c + b, each=a * d, more=a * d - b if a * d > b else a * d + b)
        pages.append(w.say(*w.one_of(
            ("{name} has {a} {things} and finds {b} more. {he} gives {c2} of them to {b_name}.", "{a} plus {b} is {total}, and {total} minus {c2} is {left}.", "{name} has {left} {things} left."),
            ("A~ {job} packs {c} boxes with {a} {things} in each.", "{c} times {a} is {product}.", "If there are {b} {things} over, there were {box} in all."),
            ("{each} {things} are shared equally among {d} people, {name} and {b_name} among them.", "{each} divided by {d} is {a}, so each gets {a} {things}."),
            ("Question: {name} is {total} years old and {b_name} is {a}. How much older is {name}?", "Answer: {total} minus {a} is {b}, so {name} is {b} years older."),
            ("One {thing} costs {a} {coin}s. {b_name} buys {c} of them and pays {product} {coin}s, because {c} times {a} is {product}.", "For {b} more {he} could have had a~ {thing} as well."))))
    return pages


def puzzle(w):
    """Order, place and syllogism puzzles: the last sentence follows from the others."""
    w.scene()
    kind = w.rng.randrange(3)
    people = w.rng.sample(w.words["girl"] + w.words["boy"], 4)
    if kind == 0:
        word, opposite = w.rng.choice([("taller", "shortest"), ("older", "youngest"), ("faster", "slowest"), ("richer", "poorest"), ("louder", "quietest")])
        best = {"taller": "tallest", "older": "oldest", "faster": "fastest", "richer": "richest", "louder": "loudest"}[word]
        facts = [f"{people[i]} is {word} than {people[i + 1]}." for i in range(3)]
        w.rng.shuffle(facts)
        return [w.say(*facts, f"Who is the {best}? It is {people[0]}, and the {opposite} is {people[3]}.")]
    if kind == 1:
        spots, where, text = w.rng.sample(w.words["place"], 4), {}, []
        item = w.pick("thing")
        holder = people[0]
        for person in people:
            where[person] = w.rng.choice(spots)
            text.append(f"{person} [is|waits|sits|stands] in the {where[person]}.")
        text.append(f"{holder} has the {item}.")
        for _ in range(w.rng.randint(2, 5)):
            person = w.rng.choice(people)
            where[person] = w.rng.choice([s for s in spots if s != where[person]])
            text.append(f"[Then|Later|After that|Next] {person} [goes|walks|runs|moves] to the {where[person]}.")
            if w.rng.random() < 0.4 and person != holder and where[person] == where[holder]:
                text.append(f"{holder} gives the {item} to {person}.")
                holder = person
        return [w.say(*text, f"Where is the {item}? It is in the {where[holder]}, with {holder}.")]
    w.fixed.update(group=w.pick("job"), name=people[0], quality=w.pick("trait"), other=w.pick("adj"))
    return [w.say(w.one_of(
        "Every {group} in {town} is {quality}. {name} is a~ {group} in {town}. Therefore {name} is {quality}.",
        "No {group} in {town} is {quality}. {name} is {quality} and lives in {town}. So {name} is not a~ {group}.",
        "If it is {weather}, the {place} is {other}. Today the {place} is not {other}. So it is not {weather}.",
        "All {quality} people {people_act}. {name} is a~ {group}, and every {group} is {quality}. It follows that {name} is one of those who {people_act}."))]


def recipe(w):
    w.cast(), w.scene()
    dish = w.expand("{adj_food} {food}")
    w.fixed["dish"] = dish
    n = w.rng.randint(3, 6)
    goods = w.rng.sample(w.words["ingredient"], n)
    amounts = [w.rng.choice(["one {measure}", "half a {measure}"] + [f"{k} {{measure}}s" for k in (2, 3, 4, 6, 10)]) for _ in goods]
    lines = [f"- {w.expand(amount)} of {good}" for amount, good in zip(amounts, goods)]
    steps = [f"{i + 1}. {w.say(step)}" for i, step in enumerate(w.some(3, 6, *(
        [f"[Chop|Wash|Peel|Weigh|Crush] the {goods[0]} [finely|with care|and set it aside].", f"Mix the {goods[1]} with the {goods[2]} in a~ {{material}} bowl.",
         "Warm a~ {adj} pan over a low fire [for {num} minutes|until it smells of {smell}].", f"Add the {goods[-1]} little by little, {{doing_how}}.",
         "Cover with a cloth and wait for {num} minutes.", "Serve with {food}, while it is [hot|still warm|fresh].", "Taste, and add salt if {name} is not looking."])))]
    return [w.say("How to make {dish}, as {name} the {job} does in {town}"), w.say("You will need:"), "\n".join(lines), "\n".join(steps)]


def guide(w):
    """A short encyclopedia entry about an invented town, animal or instrument, in the dry manner of such books."""
    w.scene()
    w.cast()
    w.fixed.update(year=w.rng.randint(1203, 1950), people_count=f"{w.rng.randint(1, 80)},{w.rng.randint(100, 999)}", dist=w.rng.randint(3, 300), num2=w.rng.randint(2, 40))
    facts = ["{town} is a~ {adj} [town|village|port|market town] of {people_count} people, {dist} [miles|kilometres] [north|south|east|west] of {town_b}.",
             "It was [founded|first mentioned|rebuilt after a fire|given its walls] in {year}.", "The {feature}, built of {material}, is [its oldest building|known for its {color} roof|open on {day}s|thought to be the work of {name}].",
             "Most people there [live by|are known for|have long depended on] {doing_act} and the trade in {material}.", "In {season} it is {weather}, and {people} {people_act}.",
             "The local dish is {food}, [served with|eaten before|never mixed with] {food_b}.", "{name}, the {job}, was born there in {year} and {did_act}.",
             "Visitors come for the {place} and the {num2} {plural} kept {where}."]
    beasts = ["The {color} {animal} is a~ {adj} animal found {where} and near the {place} of {town}.", "It {animal_act}, usually {when_short}, {aside}.",
              "An adult weighs about {num2} [pounds|kilograms] and lives for {num} years.", "It feeds on {ingredient} and, in {season}, on {ingredient_b}.",
              "In {year} {name} counted {num2} of them beside the {feature}.", "{people_cap} believe that a~ {animal} brings [luck|rain|bad news|visitors]."]
    tools = ["A~ {thing} is a~ {adj} tool of {material}, used by every {job} who wishes to {plain_act}.", "The oldest, {aside}, was found {where} in {year}.",
             "It has {num} parts, of which the {adj} {thing} is the most [useful|fragile|expensive|often lost|likely to rust].", "To use it, hold it {where} and {plain_act} {how}.", "{name} of {town} made {num2} of them, each with a~ {color} mark.",
             "Today it is [seldom seen|still made|kept in the {place}|sold for {num2} {coin}s]."]
    out = []
    for template in w.some(4, 7, *w.rng.choice([facts, beasts, tools])):
        w.fixed["aside"] = w.expand(w.one_of(*ASIDE))
        out.append(w.expand(template))
    return [w.say(*out)]


def report(w):
    """News in brief and weather: figures that agree with one another."""
    w.cast(), w.scene()
    low = w.rng.randint(-12, 24)
    w.fixed.update(low=low, high=low + w.rng.randint(2, 11), votes=w.rng.randint(40, 900), age=w.rng.randint(19, 88))
    w.fixed["margin"] = w.fixed["votes"] + w.rng.randint(3, 60)
    return [w.say(w.one_of(
        "{town}, {day}. The council voted {margin} to {votes} to {plain_act}, [the {job} {name} said|according to {name}, {age}, a~ {job}|{aside_fixed}].",
        "{town}, {day}. A~ {job} of {age} was [honoured|fined|thanked|seen {where}] after {he} {did_act} {how}.",
        "{town}, {day}. The {feature} will be closed for {num} weeks, {reason_fixed}."),
        *w.some(1, 3, '"We are {feeling}," said {name}, who {did_act}.', "{people_cap} {people_act} when they heard.", "The {thing} has not been found.",
                "It is the {ordinal} time since {month} that the {place} has been {state}.", "{name}, {age}, declined to {plain_act}.")),
        w.say(w.maybe(0.7, "Weather: {weather}, with {weather_noun} {when_short}; highs of {high} and lows of {low} degrees."),
              w.maybe(0.5, "The {path} to {town_b} is {state}, and travellers are asked to {plain_act}."))]


def diary(w):
    w.cast(), w.cast("b_"), w.scene()
    w.fixed.update(FIRST_PERSON)
    pages, day, days = [], w.rng.randrange(7), ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
    for _ in range(w.rng.randint(2, 5)):  # days follow one another, so the next heading can be known
        w.fixed["today"] = days[day % 7]
        day += 1
        first = w.some(2, 4, "I {did_act} and {did_act}.", "{b_name} came with {some} {food} and {did_act}.", "{weather_cap} again, so I {did_act} instead.", "Saw the {animal} {where}; it {animal_act}.",
                       "I am {feeling} about the {thing}.", "Must {plain_act} tomorrow.", "Why does {b_name} {plain_act}? I have never been {b_trait}.", "The {job} says the {feature} is {state}.", "Paid {num} {coin}s for a~ {adj} {thing}.")
        pages.append(w.say("{today}.", *first))
    return pages


def essay(w):
    """Opinion with concessions: long sentences with clauses inside clauses."""
    w.cast(), w.scene()
    w.fixed["topic"], w.fixed["rival"] = w.pick("doing_act"), w.pick("doing_act")
    parts = ["It is often said that {topic} is {opinion_adj}, but [those who say so|people who have never {done_act}] forget that {rival}, which {people} [praise|avoid|enjoy], is hardly better.",
             "[Consider|Take|Think of] a~ {job} who, having {done_act}, finds that the {thing} which {he} [bought|borrowed|was given] is {state}.",
             "[First|To begin with], {topic} teaches us to be {trait}; [second|then], it costs no more than {num} {coin}s; [third|finally], it can be done {where}, even when it is {weather}.",
             "I do not mean that everyone who {did_act} was {feeling}, or that those who {people_act} are {trait}; I mean only that {topic} deserves {some_praise}.",
             "The {trait} reader will object that {rival} is older, and so it is; yet what is old is not always {adj}.", "Had {name} of {town} not {done_act}, the {feature} would be {state} today.",
             "Whether one prefers {topic} or {rival}, [it must be admitted|I think|experience shows] that the {adj} {thing} is [worth more than|no use without|only as good as] the {job} who uses it."]
    return [w.say("On {topic}"), w.say(*w.some(3, 5, *parts)), w.say(*w.some(1, 3, *parts))]


def scenes(w):
    """Plain description and thought, several paragraphs: the most varied sentences, with little plot."""
    w.cast(), w.scene()
    return [prose(w, 3, 6) for _ in range(w.rng.randint(2, 4))]


def lists(w):
    w.cast(), w.scene()
    title = w.say(w.one_of("Things to take to {town}:", "What {name} the {job} sold {when_short}:", "Found {where} after the {weather_noun}:", "Rules of the {place}:"))
    rule = title.startswith("Rules")
    rows = ["Never {plain_act} when it is {weather}.", "{people_cap} must not {plain_act}.", "A~ {thing} may be used for {num} minutes.", "Be {trait}."] if rule else \
           ["{num} {plural}", "a~ {adj} {thing}", "a~ {color} {thing} of {material}", "{some} {food}", "the {job}'s {thing}", "{num} {measure}s of {ingredient}"]
    return [title, "\n".join(f"{'*' if not rule else str(i + 1) + '.'} {w.say(w.one_of(*rows))}" for i in range(w.rng.randint(3, 7)))]


KINDS = [(story, 7), (dialogue, 4), (letter, 3), (sums, 3), (puzzle, 3), (recipe, 2), (guide, 4), (report, 3), (diary, 3), (essay, 3), (scenes, 4), (lists, 2)]


def document(w):
    w.fixed = {}
    kind = w.rng.choices([k for k, _ in KINDS], [weight for _, weight in KINDS])[0]
    w.fixed.update({"he": "he", "him": "him", "his": "his", "himself": "himself", "name": w.rng.choice(w.words["boy"]), "town": w.pick("town")})
    # Values used under a second name, drawn early so that two uses in one document agree.
    for key, source in (("town_b", "town"), ("job_b", "job"), ("food_b", "food"), ("ingredient_b", "ingredient"), ("did_act_b", "did_act")):
        w.fixed[key] = w.pick(source)
    w.fixed["his_b"] = w.rng.choice(["his", "her"])
    for key, template in (("aside", ASIDE), ("reason", REASON)):
        w.fixed[key] = w.expand(w.rng.choice(template))
        w.fixed[key + "_fixed"] = w.fixed[key]
    for key, source in (("people_cap", "people"), ("weather_cap", "weather")):
        w.fixed[key] = w.pick(source)
    return "\n\n".join(kind(w))


def generate(split, seed, n_bytes):
    """Documents separated by two blank lines until n_bytes are reached; cut at a document's end."""
    w, parts, size = Writer(split, seed), [], 0
    while size < n_bytes:
        text = document(w) + "\n\n\n"
        parts.append(text)
        size += len(text.encode())
    return "".join(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--split", choices=SEEDS, required=True)
    parser.add_argument("--seed", type=int, help="default: the split's own")
    parser.add_argument("--bytes", type=int, default=180000)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    seed = SEEDS[args.split] if args.seed is None else args.seed
    with open(args.out, "w", encoding="utf-8") as f:
        f.write(generate(args.split, seed, args.bytes))


if __name__ == "__main__":
    main()
