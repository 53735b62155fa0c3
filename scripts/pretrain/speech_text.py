"""What is said in the corpus: words, and sentences drawn from patterns; lower case, no marks, numbers as words."""

from __future__ import annotations

import re

import numpy as np


def listed(names: str) -> tuple[str, ...]:
    """Names between spaces."""
    return tuple(names.split())


DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEENS = listed("ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen")
TENS = listed("twenty thirty forty fifty sixty seventy eighty ninety")
ORDINALS = listed("first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth")
MONTHS = listed("january february march april may june july august september october november december")
DAYS = listed("monday tuesday wednesday thursday friday saturday sunday")

PATTERNS = (
    "turn {on} the {device} in the {room}",
    "turn {on} the {device}",
    "please turn {on} the {device} at {time}",
    "set the {device} to {number} percent",
    "set a timer for {number} {span}",
    "wake me up at {time} on {day}",
    "wake me at {time} tomorrow",
    "remind me to {task} at {time}",
    "remind me to {task} on {day}",
    "i have to {task} before {time}",
    "we will {task} {when}",
    "can you {task} {when}",
    "could you please {task}",
    "do not forget to {task}",
    "call {person} {when}",
    "call me back at {digits}",
    "my number is {digits}",
    "the code is {digits}",
    "the number is {digits}",
    "dial {digits}",
    "open the {device}",
    "close the {thing} in the {room}",
    "where is the {colour} {thing}",
    "the {colour} {thing} is in the {room}",
    "the {thing} is {quality} and the {thing} is {quality}",
    "i would like {number} {goods} and some {food}",
    "i want {count} {goods} please",
    "we need {food} and {food} for {meal}",
    "there are {number} {goods} on the {furniture}",
    "put the {thing} on the {furniture}",
    "the {thing} on the {furniture} is {colour}",
    "it costs {number} dollars",
    "it costs {number} dollars and {number} cents",
    "the train to {city} leaves at {time}",
    "the bus from {city} arrives at {time}",
    "a ticket to {city} for {date}",
    "we fly from {city} to {city} on {date}",
    "the meeting is on {date} at {time}",
    "today is {day} {date}",
    "{person} was born on {date}",
    "{person} and {person} live in {city}",
    "{person} is {number} years old",
    "how far is it to {city}",
    "what is the weather like in {city} {when}",
    "it is {weather} in {city}",
    "it will be {weather} {when}",
    "what time is it",
    "it is {time}",
    "thank you very much",
    "good {part} {person}",
    "how are you {when}",
    "i am {feeling} {when}",
    "she said that {person} is {feeling}",
    "play some {music} in the {room}",
    "play the {ordinal} song",
    "take the {ordinal} street on the {side}",
    "turn {side} at the {place}",
    "the {place} is next to the {place}",
    "the {place} opens at {time}",
    "go to the {place} and buy {food}",
    "{number} plus {number}",
    "what is {number} times {number}",
    "the answer is {big}",
    "there were {big} people in {city}",
    "{big}",
    "{digits}",
    "{time} on {day}",
    "{date}",
    "yes please",
    "no thank you",
    "stop the {music}",
    "start again",
    "send a message to {person}",
    "read my last message",
    "the {animal} is under the {furniture}",
    "my {relative} has a {colour} {animal}",
    "her {relative} likes {food} and {food}",
    "his {relative} works in the {place}",
    "they saw a {animal} near the {place}",
    "if it is {weather} we will {task}",
)  # fmt: skip
LISTS = {
    key: tuple(values.split("|"))
    for key, values in {
        "on": "on|off|up|down",
        "device": "light|lamp|radio|heating|television|music|fan|oven|alarm|computer|camera|heater|phone",
        "room": "kitchen|bedroom|bathroom|living room|garden|office|hall|garage|cellar|dining room",
        "span": "minutes|seconds|hours",
        "task": "feed the cat|water the flowers|buy some bread|clean the kitchen|write a letter|pay the bill|"
        "wash the car|call the doctor|read the book|take the dog for a walk|go swimming|cook dinner|"
        "visit my mother|play chess|study for the test|paint the fence|meet at the station|walk along the river|"
        "lock the door|check the numbers|drink more water|fix the bicycle|stay at home",
        "when": "today|tomorrow|tonight|next week|this morning|this evening|on monday|on friday|now|later|"
        "this afternoon|in the morning|next month|after lunch",
        "thing": "door|window|book|key|box|cup|bag|letter|coat|chair|bottle|picture|knife|spoon|hat|shoe|ball|clock",
        "colour": "red|green|blue|yellow|black|white|brown|grey|orange|purple|pink",
        "quality": "new|old|big|small|heavy|light|cold|warm|broken|open|closed|empty|full|clean|dirty|cheap",
        "goods": "apples|eggs|books|chairs|tickets|bottles|oranges|cups|plates|stamps|boxes|pencils|roses",
        "food": "bread|butter|cheese|milk|coffee|tea|sugar|rice|fish|soup|salt|honey|potatoes|tomatoes|water|cake",
        "meal": "breakfast|lunch|dinner|supper",
        "furniture": "table|shelf|chair|bed|desk|sofa|floor|cupboard",
        "city": "london|paris|berlin|rome|madrid|boston|chicago|dublin|oslo|vienna|delhi|tokyo|sydney|new york",
        "person": "john|mary|anna|peter|tom|lisa|george|sarah|paul|emma|david|julia|michael|laura|mister brown|"
        "doctor smith|martin|alice|henry|susan",
        "weather": "sunny|raining|cold|warm|windy|snowing|cloudy|very hot|foggy|dry",
        "part": "morning|evening|afternoon|night",
        "feeling": "happy|tired|late|hungry|busy|fine|ready|ill|glad|sorry|lost|at home",
        "music": "music|jazz|songs|piano music",
        "side": "left|right",
        "place": "station|school|hospital|church|market|library|bank|museum|bridge|airport|hotel|park|shop|theatre",
        "animal": "dog|cat|horse|bird|mouse|cow|sheep|fox|rabbit|goat|duck",
        "relative": "mother|father|sister|brother|uncle|aunt|son|daughter|friend|neighbour",
        "ordinal": "|".join(ORDINALS),
        "day": "|".join(DAYS),
        "month": "|".join(MONTHS),
        "count": "|".join(DIGITS[2:]),
    }.items()
}
WORDS = (
    *DIGITS,
    *TEENS,
    *TENS,
    *listed("hundred thousand oh minus plus percent yes no stop go start left right up down on off open close"),
    *listed("hello goodbye please thanks okay help again next back more less red green blue yellow black white"),
    *MONTHS,
    *DAYS,
    *ORDINALS[:5],
)
"""Words that are also said alone, so that strings are joined of them; digits come first."""
_PLACE = re.compile(r"\{(\w+)\}")


def number(value: int) -> str:
    """An integer from 0 to 999,999 in words: 342 is "three hundred forty two"."""
    if value < 10:
        return DIGITS[value]
    if value < 20:
        return TEENS[value - 10]
    for size, name in ((1000, "thousand"), (100, "hundred")):
        if value >= size:
            head = f"{number(value // size)} {name}"
            return head if value % size == 0 else f"{head} {number(value % size)}"
    tens = TENS[value // 10 - 2]
    return tens if value % 10 == 0 else f"{tens} {DIGITS[value % 10]}"


def sentence(rng: np.random.Generator) -> str:
    """A random pattern, filled."""
    pattern = PATTERNS[rng.integers(len(PATTERNS))]
    return _PLACE.sub(lambda found: _filler(found[1], rng), pattern)


def digit_string(rng: np.random.Generator, least: int = 3, most: int = 8) -> str:
    """From ``least`` to ``most`` random digits."""
    return " ".join(DIGITS[digit] for digit in rng.integers(10, size=rng.integers(least, most + 1)))


def _filler(name: str, rng: np.random.Generator) -> str:
    if name == "number":
        return number(int(rng.integers(2, 100)))
    if name == "big":
        return number(int(10 ** rng.uniform(1.5, 5)))
    if name == "digits":
        return digit_string(rng)
    if name == "time":
        return _time(rng)
    if name == "date":
        day, month = int(rng.integers(len(ORDINALS))), MONTHS[rng.integers(12)]
        return f"{month} {ORDINALS[day]}" if rng.random() < 0.5 else f"the {ORDINALS[day]} of {month}"
    values = LISTS[name]
    return values[rng.integers(len(values))]


def _time(rng: np.random.Generator) -> str:
    hour, minute = number(int(rng.integers(1, 13))), int(rng.integers(10, 60))
    forms = (hour, f"{hour} {number(minute)}", f"half past {hour}", f"quarter to {hour}", f"{hour} in the morning")
    return forms[rng.integers(len(forms))]
