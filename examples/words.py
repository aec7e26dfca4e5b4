# SPDX-License-Identifier: Apache-2.0
"""The vocabulary of make_texts.py: word classes, most of them shared, some with words that only one split has.

An entry may itself be a template ({class} and [a|b] are expanded by the writer), so verb phrases carry objects that vary.
SHARED[class] is common to all splits; SPLITS[split][class] is added for that split alone.
"""


def _words(text):
    return [w.replace("~", " ") for w in text.split()]  # ~ keeps a name of two words together


def _phrases(text):
    return [p.strip() for p in text.split(";") if p.strip()]


# plain, past, participle, -ing, and what may follow
_ACTS = [tuple(line.split("/")) for line in """
mend/mended/mended/mending/the {adj} {thing}
carry/carried/carried/carrying/{some} {food} to the {place}
paint/painted/painted/painting/the {feature} {color}
write/wrote/written/writing/to {his} {relative} about the {thing}
read/read/read/reading/{few} {adj} books about {plural}
sell/sold/sold/selling/the {thing} [to a~ {job}|for a few {coin}s|without regret]
buy/bought/bought/buying/a~ {color} {thing}
build/built/built/building/a~ {adj} {thing} out of {material}
count/counted/counted/counting/the {plural} [twice|again|aloud|in the dark]
cook/cooked/cooked/cooking/{some} {food} with {ingredient}
sweep/swept/swept/sweeping/the {place}
listen/listened/listened/listening/to the {animal} {where}
look/looked/looked/looking/for the {thing} {where}
walk/walked/walked/walking/to {town} [alone|and back|by the {path}|in the {weather_noun}]
run/ran/run/running/[down|up|along] the {path}
wait/waited/waited/waiting/[for the {job}|by the {feature}|until {day}|in the {place}]
sing/sang/sung/singing/[{adj} songs|an old song|about the {feature}|to the {animal}]
draw/drew/drawn/drawing/a~ map of the {place}
hide/hid/hidden/hiding/the {plural} {where}
steal/stole/stolen/stealing/a~ {thing} from the {job}
lend/lent/lent/lending/the {thing} to {his} {relative}
open/opened/opened/opening/the {adj} {thing}
close/closed/closed/closing/the door of the {place}
learn/learned/learned/learning/[to be {trait}|{num} words of Latin|the name of every {animal}|nothing at all]
teach/taught/taught/teaching/the {animal} to {trick}
forget/forgot/forgotten/forgetting/[the {thing}|the way to {town}|what the {job} had said|to eat]
break/broke/broken/breaking/the {job}'s {thing}
throw/threw/thrown/throwing/the {plural} into the {path_water}
sit/sat/sat/sitting/{where}
sleep/slept/slept/sleeping/{where}
speak/spoke/spoken/speaking/[to the {job}|with {people}|of {town}|about {smell}|{how}]
dream/dreamed/dreamed/dreaming/of [{plural}|{food}|the {feature}|a~ {color} {animal}]
clean/cleaned/cleaned/cleaning/the {color} {thing} with {ingredient}
measure/measured/measured/measuring/the {feature}
feed/fed/fed/feeding/the {animal} [{some} {food}|by hand|twice a day]
follow/followed/followed/following/the {animal} [into the {place}|along the {path}|as far as {town}]
bury/buried/buried/burying/the {thing} under the {feature}
dig/dug/dug/digging/a~ {adj} hole beside the {feature}
climb/climbed/climbed/climbing/the {feature} [at dawn|with a rope|for the first time]
polish/polished/polished/polishing/every {thing} in the {place}
promise/promised/promised/promising/to be {trait}
complain/complained/complained/complaining/about the {weather_noun}
argue/argued/argued/arguing/with the {job} [about money|over a~ {thing}|for {num} hours]
collect/collected/collected/collecting/{adj} {plural}
repair/repaired/repaired/repairing/the {path}
plant/planted/planted/planting/{ingredient} [near|behind|all around] the {feature}
light/lit/lit/lighting/a fire in the {place}
ring/rang/rung/ringing/the {adj} bell
row/rowed/rowed/rowing/across the {path_water}
weigh/weighed/weighed/weighing/the {ingredient} with a~ {adj} {thing}
explain/explained/explained/explaining/the rules to [a~ {job}|{people}|{his} {relative}]
borrow/borrowed/borrowed/borrowing/{num} {coin}s from a~ {trait} {job}
invent/invented/invented/inventing/a~ {thing} that {machine_act}
tie/tied/tied/tying/the {animal} to the {feature}
laugh/laughed/laughed/laughing/at the {job}'s {thing}
ask/asked/asked/asking/{people} for {some} {food}
thank/thanked/thanked/thanking/the {trait} {job}
visit/visited/visited/visiting/{his} {relative} in {town}
wash/washed/washed/washing/{few} {color} {plural}
pack/packed/packed/packing/the {thing} and {some} {food}
keep/kept/kept/keeping/[quiet|the {thing}|the {plural} dry|a record of the {weather_noun}]
lose/lost/lost/losing/[the way|{num} {coin}s|a~ {color} {thing}|patience with the {job}]
study/studied/studied/studying/[the habits of the {animal}|old maps|the {plural}|law]
""".strip().splitlines()]

SHARED = {
    "girl": _words("Ada Agnes Alice Amira Anna Beth Bridget Clara Cora Daisy Dora Edith Elena Ella Emma Esther Fiona Flora Freya Grace Greta Hannah Hazel Helen "
                   "Ida Ingrid Iris Isla Ivy Jane Joan Judith Julia June Kate Laila Laura Lena Lily Lucy Mabel Maria Marta Maud Maya Mina Molly Nadia Nell Nina Nora "
                   "Olive Olga Paula Penny Rita Rosa Rose Ruth Sara Selma Sofia Stella Susan Tessa Tilda Vera Viola Wanda Zoe"),
    "boy": _words("Adam Albert Alfred Amos Anton Arthur Barney Ben Bruno Carl Caspar Cecil Cyrus Daniel David Dennis Edgar Edwin Eli Emil Eric Ezra Felix Finn Frank Fred "
                  "George Gilbert Gus Harold Harry Henry Hugo Isaac Ivan Jack Jacob James Jonas Joseph Karl Kurt Leo Leon Lewis Luke Magnus Martin Max Miles Milo Mustafa Ned "
                  "Noah Oliver Omar Oscar Otto Paul Peter Philip Ralph Raul Robert Rufus Sam Silas Simon Stefan Theo Thomas Tobias Tom Victor Walter"),
    "job": _words("baker carpenter teacher doctor fisherman gardener clockmaker blacksmith librarian weaver sailor miller tailor potter painter farmer nurse judge postman shepherd "
                  "cook lawyer glazier cobbler mason beekeeper printer surveyor pilot engineer chemist musician poet locksmith lighthouse-keeper ferryman watchman clerk "
                  "bookbinder saddler thatcher brewer optician porter tinker miner forester astronomer translator photographer plumber dentist conductor mapmaker"),
    "trait": _words("kind brave patient clever lazy curious stubborn honest quiet cheerful careful greedy shy proud wise gentle nervous generous forgetful polite rude "
                    "serious restless modest loyal jealous thoughtful hasty practical gloomy talkative tidy suspicious sensible hopeful absent-minded punctual thrifty"),
    "kin_girl": _words("sister aunt cousin neighbour friend niece teacher godmother"),
    "kin_boy": _words("brother uncle cousin neighbour friend nephew teacher godfather"),
    "relative": _words("mother father grandmother grandfather sister brother aunt uncle cousin daughter son godmother nephew"),
    "town": _words("Ashford Birchwick Carrow Dunmere Eastbrook Fallow Glenmoor Harwick Ironbridge Kestrel Larkhill Marlow Northby Oakham Pendle Quarrow Ravensby Saltmouth "
                   "Thornby Underhill Westerly Wexcombe Yarrow Brindle Coldwater Elmstead Greywell Hollin Lowgate Millbrook Stonebridge Tarn Winterbourne Redcliff Sandwick"),
    "place": _words("kitchen garden library harbour market school mill cellar attic workshop orchard barn chapel courtyard station bakery forest meadow museum laundry "
                    "stable inn town-hall greenhouse hospital quarry bridge-house parlour schoolyard boathouse observatory print-shop tannery"),
    "season": _words("spring summer autumn winter") + ["early spring", "late summer", "the dry months", "the first days of winter"],
    "weather": _phrases("cold and clear; raining; foggy; windy; unusually warm; snowing; damp and grey; bright; stormy; dry; so hot that the tar melted; mild; cloudy; freezing; about to rain"),
    "weather_noun": _words("rain snow wind fog storm frost heat thunder hail drought flood mist thaw"),
    "animal": _words("dog cat horse goat owl fox crow hen donkey mouse hare goose sheep badger otter heron pig swan squirrel toad raven cow sparrow hedgehog deer pigeon "
                     "rat weasel turtle parrot mule bat beetle salmon rabbit wren kestrel lizard"),
    "animal_act": _phrases("slept on the step; called twice; watched the {path}; ate the {ingredient}; ran in circles; would not move; chased {plural}; made a~ {adj} noise; hid {where}; "
                           "looked at {people}; drank from the {path_water}; stole {some} {food}; scratched at the door; followed the {job}; shook itself; dug up the {plural}; sat on the {thing}; "
                           "stared at the {feature}; vanished into the {weather_noun}; came and went; hunted near the {feature}; slept through the {weather_noun}"),
    "trick": _phrases("dance; open doors; count to {num}; carry letters; sit still; ring a bell; fetch {plural}; bow; play dead; find {ingredient}"),
    "thing": _words("lamp clock key basket kettle ladder mirror hammer violin umbrella ring book box coat hat knife map needle bell boat bottle brush bucket candle chair "
                    "coin compass cup drum flute glove kite lantern letter lock medal net pen pipe plate purse rope saddle saw scarf shovel spoon telescope trunk trumpet wheel whistle "
                    "barometer spade teapot sewing-machine typewriter anchor harp globe thermometer screw hinge blanket microscope abacus"),
    "material": _words("oak brass iron silver wool glass copper clay stone leather paper pine tin linen marble steel wax bone silk straw slate bronze granite ivory velvet"),
    "color": _words("red blue green yellow white black grey brown purple orange pink golden silver crimson pale-blue dark-green"),
    "food": _words("bread soup cheese honey cake pie stew porridge jam fish apples pudding pancakes rice beans potatoes noodles dumplings omelette biscuits sausages pickles "
                   "plums toast curry mushrooms chestnuts custard lentils gingerbread"),
    "adj_food": _words("cold spiced baked sweet sour fried stuffed plain roasted boiled smoked festive salted"),
    "ingredient": _words("flour salt butter sugar barley onions carrots cabbage garlic pepper milk eggs cinnamon vinegar oats cream parsley lemons walnuts raisins oil yeast "
                         "thyme cherries almonds peas turnips mustard leeks rosemary"),
    "measure": _words("cup spoon handful drop pound bowl bag jar slice tin"),
    "feature": _phrases("tower; old bridge; well; church clock; windmill; fountain; city wall; lighthouse; statue of the {job}; crooked chimney; {material} gate; great oak; water wheel; "
                        "bell tower; ruined castle; stone staircase; railway arch; market cross; hill; sundial; dam; weathercock; cliff; canal lock"),
    "path": _words("road street lane path footpath hill track bridge alley pavement square avenue embankment"),
    "path_water": _words("river lake sea canal pond stream harbour well bay"),
    "state": _phrases("broken; empty; locked; too small; covered in {material}; in need of repair; no longer his; full of {plural}; older than it looked; worth {num} {coin}s; under water; "
                      "for sale; gone; as good as new; out of reach; painted {color}; cracked from top to bottom; warm to the touch; beyond help; dangerous; nearly finished; "
                      "heavier than before; closed to visitors; upside down"),
    "adj": _words("old small large strange beautiful broken heavy narrow quiet dusty bright crooked empty famous simple ancient cheap dark deep dry early elegant faint fine flat "
                  "forgotten fragile friendly handsome hollow huge humble late light lonely long lovely low modern muddy neat new odd ordinary plain pleasant polished poor pretty "
                  "rare rough round rusty shallow sharp shiny short slender smooth soft solid square steep sturdy tall thick thin tiny ugly useful useless valuable warm wet wide wild wonderful"),
    "stood": _words("stood rose waited leaned loomed remained slept towered crumbled"),
    "shone": _words("shone glowed gleamed glittered faded flickered trembled"),
    "light": _phrases("morning light; lamplight; moonlight; last light; candlelight; light from the {place}; noon sun; half-dark; glow of the fire; dawn"),
    "smell": _phrases("smoke; fresh bread; {ingredient}; wet {animal}; old paper; tar; cut grass; {material} polish; burnt {food}; the sea; roses; soap; {food}; hay; oil paint"),
    "where": _phrases("behind the {place}; near the {feature}; under the stairs; by the {path_water}; in the {place}; on the roof; at the end of the {path}; beside the {feature}; inside a~ {adj} {thing}; "
                      "between two {plural}; in the middle of the {path}; on the far side of the {path_water}; at the back of the {place}; beneath a~ pile of {plural}; outside {town}; "
                      "next to the {thing}; above the {place}; in the shade of the {feature}; among the {plural}; halfway to {town}"),
    "when": _phrases("one morning; at noon; late in the {day_part}; on the first {day} of {month}; after the {weather_noun}; just before dark; in the middle of the night; as soon as it was light; "
                     "{num} days later; at {num} o'clock; one {season} {day_part}; when the bell had rung; that very {day_part}; not long afterwards; the next {day}"),
    "when_short": _phrases("at night; last {day}; in {month}; before breakfast; after dark; during the {weather_noun}; every {day}; at dawn; in {season}; once a year; last week"),
    "day": _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
    "month": _words("January February March April May June July August September October November December"),
    "day_part": _words("morning afternoon evening night"),
    "people": _phrases("the neighbours; most people; the children; the {job}s; two strangers; the old men; the villagers; the visitors; the women by the {feature}; the travellers; the soldiers; both families; the guests; the pupils; the people of {town}"),
    "people_act": _phrases("went home early; stayed indoors; stood {where}; talked of nothing else; bought {food}; {did_plural}; paid no attention; gathered {where}; shook their heads; asked for {food}; "
                           "waited {where}; laughed; told stories about the {job}; looked for {plural}; hung out their {plural}; said nothing; complained of the {weather_noun}; sang; left for {town}; kept their doors shut"),
    "did_plural": _phrases("danced; ate {food}; played cards; lit fires; rang the bells; wrote to the newspaper; swept the {path}; prayed; quarrelled; mended nets"),
    "few": _words("three several many few two countless some four dozens~of various"),
    "plural": _words("apples books boxes stones letters birds candles leaves coins shoes bottles flowers feathers keys bricks barrels shells ropes nails plates hats ships stamps "
                     "ribbons buttons seeds chairs clocks nets lamps tickets maps marbles bells spoons papers baskets blankets jars pebbles chestnuts acorns kites photographs"),
    "feeling": _words("happy tired proud afraid angry lonely surprised sad calm ashamed hungry relieved puzzled bored delighted worried grateful confused eager homesick content annoyed"),
    "how": _phrases("quietly; at once; with great care; as well as {he} could; in silence; without a word; slowly; angrily; with a smile; for the last time; again and again; badly; in a low voice; "
                    "with both hands; like a~ {trait} {animal}; for no reason; twice; as if nothing had happened; rather {trick_adv}; under {his} breath"),
    "trick_adv": _words("sadly proudly politely firmly happily foolishly bravely coldly kindly sharply softly"),
    "wish": _words("money sleep fame food praise rest revenge comfort silence"),
    "said": _words("said answered whispered replied muttered cried laughed shouted sighed explained insisted"),
    "greet": _phrases("good morning; good evening; hello; good day; come in; welcome; well met; there you are; excuse me"),
    "some": _phrases("some; a little; plenty of; a bowl of; half of the; a basket of; enough; a bag of; the last of the; more"),
    "time_unit": _words("hours days miles nights minutes"),
    "some_praise": _phrases("a day worth remembering; the best {food} in {town}; better than {coin}s; more than anyone had hoped; nothing to boast of; a strange sort of luck; a good beginning; our respect; "
                            "a second look; praise; neither more nor less than was fair"),
    "ask": _phrases("Where have you been?; Have you heard about the {job}?; Is that your {thing}?; Will you be at the {place} on {day}?; Why is the {feature} {state}?; Did you {plain_act}?; "
                    "Can you lend me a~ {thing}?; What is the matter with the {animal}?; How far is it to {town}?; Who told you to {plain_act}?; When do you mean to {plain_act}?"),
    "answer": _phrases("Of course; Certainly not; I am not sure; Perhaps; Only if you {plain_act}; So they say; Ask me on {day}; That depends on the {weather_noun}; It is no secret; I wish I knew; "
                       "Nobody has told me; I was {doing_act}; As you like; More or less; Not in {town}; Never again; Because it is {weather}"),
    "why_not": _phrases("You cannot be serious; That is what the {job} said; Not in this {weather_noun}; I thought so; What a~ {adj} idea; You said the same in {month}; Then you will need a~ {thing}; "
                        "I have heard worse; And who will pay for it; At your age"),
    "doubt": _phrases("The {feature} is {state}.; Nobody has ever {done_act} there.; Think of your {relative}.; First we should {plain_act}.; It takes {num} hours.; A~ {job} would know better.; "
                      "There are too many {plural}.; The {animal} will not like it.; You never {did_act} in your life.; I would rather {plain_act}."),
    "coin": _words("coin ducat crown dollar shilling florin"),
    "opinion": _phrases("it is {adj}; I like it; it is too {adj} for me; it needs {material}; it could be worse; I have seen better in {town}; it makes me {feeling}; it is older than the {feature}"),
    "opinion_adj": _words("harmless useless dangerous noble tedious expensive necessary childish unfashionable respectable"),
    "doing_how": _phrases("stirring all the time; without stopping; as {people} do; a~ {measure} at a time; while it is warm; keeping it from the {animal}"),
    "machine_act": _phrases("counts {plural}; peels {ingredient}; rings when it is {weather}; measures the {weather_noun}; plays music; never needs oil; frightens the {animal}; folds {plural}"),
    "num": [str(n) for n in range(2, 13)] + _words("two three four five six seven eight nine ten twelve fifteen twenty forty"),
    "ordinal": _words("first second third fourth fifth sixth tenth"),
    "plain_act": [f"{plain} {rest}" for plain, _, _, _, rest in _ACTS],
    "did_act": [f"{past} {rest}" for _, past, _, _, rest in _ACTS],
    "done_act": [f"{done} {rest}" for _, _, done, _, rest in _ACTS],
    "doing_act": [f"{doing} {rest}" for _, _, _, doing, rest in _ACTS],
}

SPLITS = {
    "training": {
        "girl": _words("Abigail Camilla Dagmar Eunice Gloria Hilda Irene Josephine Lydia Miriam Nancy Opal Priscilla Rebecca Tabitha"),
        "boy": _words("Abel Boris Conrad Duncan Ernest Gregory Hector Ismael Julian Kenneth Lionel Morris Nigel Patrick Quentin"),
        "town": _words("Amberley Bexwater Cloverly Drayton Farrow Holmfirth Netherby Summerton Vale Whitmore"),
        "thing": _words("accordion bicycle calendar dagger easel fan goblet"), "animal": _words("camel eagle frog lamb monkey snail"),
        "job": _words("barber butcher diver jeweller mechanic soldier"), "plural": _words("cherries dolls drums insects onions pencils"),
    },
    "calibration": {
        "girl": _words("Beatrix Delia Harriet Imogen Leonora Odette Ursula Winifred"), "boy": _words("Barnaby Clement Desmond Humphrey Jasper Percival Roland Vincent"),
        "town": _words("Aldermoor Fernley Hobcastle Little~Wick Rookhope Seaburn"), "thing": _words("bellows cradle hourglass lute padlock wheelbarrow"),
        "animal": _words("magpie newt pony stoat"), "job": _words("apothecary chandler drover wheelwright"), "plural": _words("lanterns mittens pumpkins turnips"),
    },
    "heldout": {
        "girl": _words("Augusta Celeste Dorothea Florence Henrietta Matilda Rosalind Sybil"), "boy": _words("Ambrose Basil Cornelius Edmund Gideon Lambert Nathaniel Wilfred"),
        "town": _words("Brackenfold Copperhill Eversham Great~Tarrow Mossdale Pikestead"), "thing": _words("anvil cello inkwell sextant spinning-wheel tambourine"),
        "animal": _words("ferret goldfinch lynx starling"), "job": _words("cooper falconer gamekeeper upholsterer"), "plural": _words("bobbins daffodils saucers thimbles"),
    },
}
