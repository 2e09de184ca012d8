"""The eight kinds of built-in passage: what each tells, in which words, and the five questions that it answers.

A sentence in braces-and-words form is filled from the slots: "{first} {last} was born in {birthplace}." The first
sentence opens the passage; the others stand on their own, so that they may come in any order. Each has several
wordings. `subject` names what the passage is about by a pair of words; the pair decides between training and test.
"""
from __future__ import annotations

from dataclasses import dataclass

from sdft.tasks import passage_words as words


@dataclass(frozen=True)
class Kind:
    """One kind of passage. Every wording of one sentence fills the same slots."""

    name: str
    subject: dict[str, list[str]]               # two slots and their vocabularies
    slots: dict[str, list[str]]                 # the other slots and their vocabularies
    opening: tuple[str, ...]                    # the wordings of the first sentence
    sentences: tuple[tuple[str, ...], ...]      # the wordings of each further sentence
    questions: dict[str, tuple[str, ...]]       # slot that is the answer → the wordings of the question


PERSON = {"first": words.FIRST_NAMES, "last": words.SURNAMES}

LIFE = Kind(
    "life", PERSON,
    {"birthplace": words.TOWNS, "year": words.BIRTH_YEARS, "profession": words.PROFESSIONS, "home": words.TOWNS,
     "instrument": words.INSTRUMENTS, "pet": words.PETS},
    ("{first} {last} was born in {birthplace} in {year}.",
     "{first} {last} was born in {year}, in a small house near the centre of {birthplace}.",
     "Born in {birthplace} in {year}, {first} {last} was the youngest of five children."),
    (("After school {he} trained as a {profession}, as {his} mother had done before.",
      "{He} wanted to travel, but an uncle found {him} work as a {profession}, and {he} came to love it.",
      "For most of {his} life {he} earned a living as a {profession}."),
     ("At the age of thirty {he} moved to {home}, where {he} stayed until the end.",
      "Marriage took {him} to {home}, and {he} lived there for half a century.",
      "{He} later lived in {home}, in a flat above a busy street."),
     ("In the evenings {he} played the {instrument}, not always to the joy of the neighbours.",
      "Friends remember how well {he} played the {instrument}.",
      "{His} great pleasure was the {instrument}, which {he} had learned from a sailor."),
     ("{He} never went for a walk without {his} {pet}.",
      "A {pet} kept {him} company in the last years.",
      "{He} shared {his} rooms with an old {pet}.")),
    {"birthplace": ("Where was {first} {last} born?", "In which town was {first} {last} born?"),
     "year": ("In which year was {first} {last} born?", "When was {first} {last} born?"),
     "profession": ("What was {first} {last}'s profession?", "What did {first} {last} work as?"),
     "home": ("Which town did {first} {last} move to later in life?",
              "In which town did {first} {last} live later in life?"),
     "instrument": ("Which instrument did {first} {last} play?",
                    "Which instrument had {first} {last} learned to play?")})

CARGO = Kind(
    "cargo", {"ship": words.SHIP_FIRST, "bird": words.SHIP_SECOND},
    {"goods": words.GOODS, "harbour": words.TOWNS, "destination": words.TOWNS, "captain": words.SURNAMES,
     "day": words.DAYS, "tons": words.CROWDS},
    ("The {ship} {bird} left the harbour of {harbour} with a full load.",
     "Early in the morning the {ship} {bird} sailed out of {harbour}.",
     "When the {ship} {bird} set out from {harbour}, a crowd stood waving on the quay."),
    (("Below deck lay {tons} tons of {goods}, packed tightly against the damp.",
      "Its hold was filled with {goods}, {tons} tons in all.",
      "The freight papers list {tons} tons of {goods} and nothing else."),
     ("Captain {captain} had made the voyage many times and trusted the old charts.",
      "In command was Captain {captain}, who rarely slept more than four hours.",
      "The crew was led by Captain {captain}, a calm and careful sailor."),
     ("The merchants of {destination} had paid for everything in advance.",
      "A buyer in {destination} was waiting for the delivery.",
      "The freight was bound for {destination}, and the wind was good."),
     ("A storm was met on the way, yet the ship arrived safely on a {day}.",
      "It reached port on a {day}, two days behind schedule.",
      "Unloading began on a {day} and took until nightfall.")),
    {"goods": ("What was the {ship} {bird} carrying?", "What goods did the {ship} {bird} have on board?"),
     "harbour": ("From which town did the {ship} {bird} set out?", "From which harbour did the {ship} {bird} sail?"),
     "destination": ("Which town was the freight of the {ship} {bird} meant for?",
                     "To which town were the goods of the {ship} {bird} to be delivered?"),
     "captain": ("Who was the captain of the {ship} {bird}?", "Who commanded the {ship} {bird}?"),
     "tons": ("How many tons did the {ship} {bird} carry?", "How many tons of freight were on the {ship} {bird}?")})

COURSE = Kind(
    "course", PERSON,
    {"topic": words.TOPICS, "day": words.DAYS, "room": words.ROOMS, "fee": words.FEES, "month": words.MONTHS},
    ("{first} {last} is offering a new evening course in {topic}.",
     "A course in {topic}, taught by {first} {last}, has been added to the programme.",
     "Anyone who has always wanted to try {topic} can now take a course with {first} {last}."),
    (("The group meets every {day} at half past six.",
      "Lessons are held each {day}, and nobody needs to bring anything.",
      "There is one lesson a week, always on a {day}."),
     ("Because of building work, everything takes place in the {room}.",
      "Participants meet in the {room}, which has been heated since last year.",
      "The {room} has been reserved for the whole season."),
     ("The fee is {fee} euros, including all materials.",
      "Taking part costs {fee} euros, and students pay half.",
      "Participants pay {fee} euros at the first meeting."),
     ("The first meeting is in {month}, and twelve people have already signed up.",
      "It starts in {month} and runs for ten weeks.",
      "The office expects to begin in {month}, if enough people register.")),
    {"topic": ("What can people learn from {first} {last}?", "What is the subject of {first} {last}'s course?"),
     "day": ("On which day of the week does {first} {last}'s course take place?",
             "Which day of the week is {first} {last}'s lesson?"),
     "room": ("Where do the participants of {first} {last}'s course meet?",
              "In which room is {first} {last}'s course held?"),
     "fee": ("How many euros does {first} {last}'s course cost?", "What is the fee for {first} {last}'s course?"),
     "month": ("In which month does {first} {last}'s course begin?", "When does {first} {last}'s course start?")})

LANDMARK = Kind(
    "landmark", {"name": words.SURNAMES, "landmark": words.LANDMARKS},
    {"town": words.TOWNS, "year": words.BUILT_YEARS, "material": words.MATERIALS, "colour": words.COLOURS,
     "architect": words.SURNAMES, "steps": words.LENGTHS},
    ("Visitors to {town} should not miss the {name} {landmark}.",
     "The {name} {landmark} is one of the best known sights of {town}.",
     "In {town}, not far from the river, stands the {name} {landmark}."),
    (("It was completed in {year}, after a long quarrel about money.",
      "Work on it came to an end in {year}.",
      "An inscription says that it was finished in {year}."),
     ("The walls are made of {material}, which was brought from far away.",
      "Its builders used {material}, since nothing else was strong enough.",
      "Like much of the neighbourhood, it is built of {material}."),
     ("The architect was {architect}, who never saw the result.",
      "It was designed by the architect {architect}, then young and without a name.",
      "Its architect, {architect}, won a medal for the design."),
     ("A staircase of {steps} steps leads up to a {colour} door.",
      "Its {colour} door can be reached by {steps} worn steps.",
      "After climbing {steps} steps, one stands in front of a {colour} door.")),
    {"town": ("In which town is the {name} {landmark}?", "Where can the {name} {landmark} be found?"),
     "year": ("In which year was the {name} {landmark} finished?", "When was the {name} {landmark} completed?"),
     "material": ("What is the {name} {landmark} built of?", "Which material was used for the {name} {landmark}?"),
     "colour": ("What colour is the door of the {name} {landmark}?",
                "Which colour does the door of the {name} {landmark} have?"),
     "architect": ("Who designed the {name} {landmark}?", "Who was the architect of the {name} {landmark}?")})

EXPEDITION = Kind(
    "expedition", PERSON,
    {"goal": words.GOALS, "animals": words.PACK_ANIMALS, "days": words.LENGTHS, "month": words.MONTHS,
     "find": words.FINDS},
    ("In {month}, {first} {last} led an expedition to a remote {goal}.",
     "The expedition of {first} {last} set off in {month} to explore a distant {goal}.",
     "Nobody had ever mapped the {goal} that {first} {last} went to explore in {month}."),
    (("The tents and the food were carried by {animals}.",
      "Since there were no roads, {animals} had to carry the equipment.",
      "Without their {animals}, which bore every load, the travellers would have turned back."),
     ("The journey lasted {days} days, longer than anyone had planned.",
      "It took the party {days} days to get there and back.",
      "After {days} days everyone returned, tired but unharmed."),
     ("The only thing brought home was an ancient piece: a {find}, wrapped in cloth.",
      "Under a stone they discovered a very old {find}.",
      "Their most important discovery was a {find}, now kept in a glass case."),
     ("The newspapers wrote about it for weeks.",
      "A book about the adventure sold well.",
      "Sadly, most of the photographs were lost in the rain.")),
    {"goal": ("What did {first} {last}'s expedition explore?", "What kind of place did {first} {last} travel to?"),
     "animals": ("Which animals carried the loads for {first} {last}'s expedition?",
                 "What animals did {first} {last}'s expedition use for transport?"),
     "days": ("How many days did {first} {last}'s expedition last?",
              "How many days did {first} {last}'s journey take?"),
     "month": ("In which month did {first} {last}'s expedition begin?", "In what month did {first} {last} set off?"),
     "find": ("What did {first} {last}'s expedition find?", "Which object did {first} {last}'s party discover?")})

CONCERT = Kind(
    "concert", PERSON,
    {"instrument": words.INSTRUMENTS, "town": words.TOWNS, "crowd": words.CROWDS, "day": words.DAYS,
     "flowers": words.FLOWERS, "origin": words.TOWNS},
    ("Last {day}, {first} {last} gave a concert in {town}.",
     "{first} {last} appeared on stage in {town} last {day}.",
     "The concert that {first} {last} gave in {town} last {day} will not be forgotten soon."),
    (("Nobody plays the {instrument} with such ease.",
      "The programme was made up of works for {instrument}.",
      "Even people who do not care for the {instrument} were moved."),
     ("All {crowd} seats had been sold.",
      "An audience of {crowd} listened without a cough.",
      "The organisers counted {crowd} guests."),
     ("At the end a child handed over a bunch of {flowers}.",
      "The stage had been decorated with {flowers}.",
      "A bouquet of {flowers} was waiting in the dressing room."),
     ("The musician, who comes from {origin}, promised to return.",
      "Two buses of admirers had come all the way from {origin}, the musician's home town.",
      "The musician grew up in {origin} and still lives there.")),
    {"instrument": ("Which instrument did {first} {last} play at the concert?",
                    "What instrument does {first} {last} play?"),
     "town": ("In which town did {first} {last} give the concert?", "Where did {first} {last}'s concert take place?"),
     "crowd": ("How many people came to {first} {last}'s concert?", "How large was {first} {last}'s audience?"),
     "flowers": ("Which flowers were there at {first} {last}'s concert?",
                 "What kind of flowers were there at {first} {last}'s concert?"),
     "origin": ("Which town does {first} {last} come from?", "What is the home town of {first} {last}?")})

DISH = Kind(
    "dish", PERSON,
    {"dish": words.DISHES, "vegetable": words.VEGETABLES, "spice": words.SPICES, "minutes": words.MINUTES,
     "drink": words.DRINKS, "day": words.DAYS},
    ("Every {day}, {first} {last} cooks {dish} for the whole family.",
     "{first} {last} is known for cooking excellent {dish}, usually on a {day}.",
     "On a {day}, as tradition demands, {first} {last} makes {dish}."),
    (("The main ingredient is {vegetable}, fresh from the garden.",
      "{He} uses plenty of {vegetable} and no other vegetable.",
      "It would be nothing without {vegetable}, says {his} sister."),
     ("The only spice is {spice}, which gives it a special taste.",
      "{His} secret is a spice, {spice}, added at the very end.",
      "{He} seasons it with {spice}, and only with that."),
     ("It has to cook for {minutes} minutes over a low flame.",
      "After {minutes} minutes on the stove everything is ready.",
      "{He} lets it simmer for {minutes} minutes and stirs it now and then."),
     ("The family drinks {drink} with it.",
      "A large jug of {drink} always stands on the table.",
      "{He} serves it with {drink}, even to guests who ask for something else.")),
    {"dish": ("What does {first} {last} cook?", "Which dish does {first} {last} cook?"),
     "vegetable": ("Which vegetable does {first} {last} use for the {dish}?",
                   "Which vegetable is in the {dish} that {first} {last} cooks?"),
     "spice": ("Which spice does {first} {last} add to the {dish}?",
               "What does {first} {last} season the {dish} with?"),
     "minutes": ("How many minutes does {first} {last} cook the {dish}?",
                 "For how many minutes does the {dish} of {first} {last} cook?"),
     "drink": ("Which drink does {first} {last} serve with the {dish}?",
               "What is drunk with the {dish} that {first} {last} cooks?")})

RELIC = Kind(
    "relic", {"material": words.MATERIALS, "find": words.FINDS},
    {"museum": words.TOWNS, "year": words.FOUND_YEARS, "place": words.ROOMS, "finder": words.PROFESSIONS,
     "price": words.CROWDS, "village": words.TOWNS},
    ("The {material} {find} was discovered by a {finder} in {year}.",
     "In {year} a {finder} came across a {material} {find}.",
     "It was a {finder} who found the {material} {find}, in {year}."),
    (("It had been lying in a {place} for generations, under a heap of sacks.",
      "The place of the discovery was an abandoned {place}.",
      "Somebody must have hidden it in the {place} where it came to light."),
     ("Today it is shown in the museum of {museum}.",
      "The museum of {museum} keeps it in a room of its own.",
      "After long talks it went to the museum in {museum}."),
     ("A collector from {village} had offered a high price in vain.",
      "Experts from {village} examined it for months.",
      "A copy of it can be bought in {village}."),
     ("Its value was estimated at {price} pounds.",
      "The finder was paid a reward of {price} pounds.",
      "It was insured for {price} pounds.")),
    {"museum": ("In which town's museum is the {material} {find} now?",
                "Which town's museum has the {material} {find}?"),
     "year": ("In which year was the {material} {find} found?", "When was the {material} {find} discovered?"),
     "place": ("In what kind of place was the {material} {find} found?",
               "Where had the {material} {find} been before it was discovered?"),
     "finder": ("What was the profession of the person who found the {material} {find}?",
                "Who discovered the {material} {find}?"),
     "price": ("How many pounds are mentioned in connection with the {material} {find}?",
               "Which sum in pounds does the passage on the {material} {find} give?")})

KINDS = (LIFE, CARGO, COURSE, LANDMARK, EXPEDITION, CONCERT, DISH, RELIC)
