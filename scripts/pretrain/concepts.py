"""What the embedded base knows: things, styles, colours, textures, sizes and positions, as plain tables.

A concept is written ``name`` or ``name=label`` where ``label`` is its emojibase label when that differs from the
natural word. Concepts under :data:`HELD_OUT` never enter any training: they are the subjects to personalize on.
"""

from __future__ import annotations

STYLES: dict[str, tuple[str, ...]] = {
    "noto": ("cartoon", "drawn"),
    "twemoji": ("flat", "simple"),
    "fluent-emoji": ("glossy", "shiny"),
}
"""Artwork set -> the words that captions call it by."""

TEXTURES = ("plain", "gradient", "striped", "dotted", "checkered")
POSITIONS = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")

TRAINED: dict[str, str] = {
    "animal": "monkey, gorilla, dog, fox, raccoon, cat, lion, tiger, cow, pig, sheep=ewe, camel=two-hump camel, "
    "giraffe, elephant, rhinoceros, hippopotamus, mouse, rabbit, squirrel=chipmunk, bat, bear, koala, panda, "
    "frog, snail, horse, zebra, deer",
    "bird": "chicken, rooster, chick=front-facing baby chick, penguin, dove, eagle, duck, swan, flamingo, peacock",
    "reptile": "crocodile, turtle, lizard, snake, dragon, brontosaurus=sauropod",
    "sea animal": "whale, dolphin, fish, blowfish, shark, jellyfish, crab, shrimp",
    "insect": "butterfly, caterpillar=bug, ant, bee=honeybee, beetle, spider, scorpion",
    "flower": "bouquet, cherry blossom, rose, hibiscus, daisy=blossom, tulip",
    "plant": "potted plant, tree=deciduous tree, palm tree, clover=four leaf clover, maple leaf",
    "fruit": "grapes, watermelon, orange=tangerine, lemon, banana, red apple, green apple, pear, peach, cherries, "
    "strawberry, blueberries, coconut, tomato",
    "vegetable": "avocado, eggplant, potato, carrot, corn=ear of corn, chili=hot pepper, bell pepper, "
    "cabbage=leafy green, onion",
    "food": "bread, croissant, pancakes, cheese=cheese wedge, steak=cut of meat, hamburger, french fries, pizza, hot "
    "dog, sandwich, fried egg=cooking, popcorn, rice ball, soup=pot of food",
    "dessert": "ice cream=soft ice cream, cookie, birthday cake, cake=shortcake, pie, chocolate bar, candy, lollipop",
    "drink": "milk=glass of milk, coffee=hot beverage, teapot, champagne=bottle with popping cork, cocktail=cocktail "
    "glass, beer=beer mug, juice box=beverage box, soda=cup with straw",
    "car": "car=automobile, taxi, police car, jeep=sport utility vehicle",
    "vehicle": "bus, ambulance, truck=delivery truck, train=locomotive, tram, motorcycle, scooter=motor scooter, "
    "bicycle, skateboard",
    "boat": "canoe, cruise ship=passenger ship, ship",
    "aircraft": "airplane, flying saucer, parachute",
    "building": "house, garden house=house with garden, office building, hospital, school, factory, church, mosque, "
    "tent, ferris wheel, fountain",
    "musical instrument": "saxophone, trumpet, violin, piano=musical keyboard, maracas",
    "ball": "soccer ball, baseball, basketball, volleyball, football=american football, tennis ball=tennis, billiard "
    "ball=pool 8 ball",
    "toy": "kite, yo-yo, water pistol, die=game die, puzzle piece, nesting dolls, balloon, carousel horse",
    "monster": "ghost, alien, ogre, goblin, snowman=snowman without snow, clown=clown face",
    "tool": "hammer, axe, saw=carpentry saw, wrench, screwdriver, knife=kitchen knife, scissors, ladder, broom, "
    "paintbrush, pencil, key",
    "hat": "top hat, sun hat=woman\u2019s hat, graduation cap, cap=billed cap, helmet=rescue worker\u2019s helmet",
    "shoe": "sneaker=running shoe, hiking boot, high heel=high-heeled shoe, boot=woman\u2019s boot, ice skate",
    "clothing": "glasses, sunglasses, necktie, t-shirt, jeans, scarf, coat, socks, dress, handbag, backpack",
    "furniture": "door, bed, sofa=couch and lamp, chair, toilet, bathtub",
    "device": "watch, alarm clock, microphone, headphones=headphone, cell phone=mobile phone, telephone, laptop, "
    "television, video camera, light bulb, telescope, microscope, hourglass=hourglass done",
    "thing": "umbrella, candle, gift=wrapped gift, trophy, bell, basket, suitcase=luggage, box=package, "
    "mailbox=postbox, book=closed book, envelope, coin, diamond=gem stone, anchor, sun, star, cloud, rainbow, "
    "fire, snowflake, volcano, mountain=snow-capped mountain, planet=ringed planet, red heart, bone, syringe, "
    "toothbrush, bow=ribbon, bomb, lock=locked, magnifying glass=magnifying glass tilted left",
}  # fmt: skip
"""Class word -> the concepts under it that the base is trained on."""

HELD_OUT: dict[str, str] = {
    "bird": "owl, parrot",
    "animal": "unicorn, hedgehog, kangaroo, orangutan",
    "reptile": "t-rex=T-Rex",
    "sea animal": "octopus, tropical fish",
    "insect": "ladybug=lady beetle",
    "flower": "sunflower",
    "plant": "cactus, mushroom",
    "fruit": "pineapple, kiwi=kiwi fruit",
    "vegetable": "broccoli",
    "food": "sushi, taco, pretzel",
    "dessert": "doughnut, cupcake",
    "drink": "tropical drink, bubble tea",
    "car": "racing car",
    "vehicle": "tractor, fire engine",
    "boat": "sailboat",
    "aircraft": "helicopter, rocket",
    "building": "castle",
    "musical instrument": "guitar, accordion, drum",
    "toy": "robot, teddy bear",
    "monster": "jack-o-lantern, space invader=alien monster",
    "hat": "crown",
    "shoe": "roller skate",
    "device": "camera",
    "thing": "lantern=red paper lantern, magnet",
}
"""Class word -> concepts that no training ever sees."""

PLURALS: dict[str, str] = {
    "mouse": "mice", "fish": "fish", "sheep": "sheep", "knife": "knives", "die": "dice",
    "maple leaf": "maple leaves", "deer": "deer", "shrimp": "shrimp", "jellyfish": "jellyfish",
    "blowfish": "blowfish", "scarf": "scarves", "potato": "potatoes", "tomato": "tomatoes",
}  # fmt: skip
"""Plurals that no rule gives."""

UNCOUNTED = frozenset({
    "beer", "blueberries", "bread", "broccoli", "cabbage", "champagne", "cheese", "cherries", "coffee", "corn",
    "fire", "french fries", "glasses", "grapes", "headphones", "ice cream", "jeans", "maracas", "milk",
    "nesting dolls", "pancakes", "popcorn", "scissors", "socks", "soda", "sunglasses", "sushi",
})  # fmt: skip
"""Names that take neither "a" nor a plural: "a photo of grapes"."""


def table(rows: dict[str, str]) -> list[tuple[str, str, str]]:
    """``(name, class word, emojibase label)`` for each concept of a table, in its order."""
    found = []
    for class_word, text in rows.items():
        for entry in text.split(", "):
            name, _, label = entry.partition("=")
            found.append((name, class_word, label or name))
    return found


def names(rows: dict[str, str]) -> list[str]:
    """The concepts of a table, in its order."""
    return [name for name, _, _ in table(rows)]


def article(name: str) -> str:
    """``name`` with "a" or "an", or bare where it takes none."""
    if name in UNCOUNTED:
        return name
    return ("an " if name[0] in "aeiou" else "a ") + name


def plural(name: str) -> str:
    """``name`` for two or more of it."""
    if name in PLURALS:
        return PLURALS[name]
    if name in UNCOUNTED:
        return name
    if name.endswith(("s", "x", "ch", "sh")):
        return name + "es"
    if name.endswith("y") and name[-2] not in "aeiou":
        return name[:-1] + "ies"
    return name + "s"


COMMON_WORDS = (
    "and the of to in is it on that with as for was at by from this be or are an my your his her our their sks "
    "xyz style made toy plush wooden golden silver metal glass paper old new young happy sad cute funny "
    "beautiful colorful bright dark warm cold fast slow wearing holding sitting standing running flying "
    "swimming eating drinking sleeping playing under over above below beside behind between near beach forest "
    "city street room kitchen garden snow water sea sky night day sunset grass table floor wall window man "
    "woman boy girl person child people face hand eye head body photo photograph picture image painting "
    "drawing sketch cartoon illustration portrait close view front side back one two three four five six seven "
    "eight nine ten round square soft hard clean dirty full empty open closed"
)
"""Words that a user may write and no caption holds; the tokenizer learns to keep them whole."""

FILLERS = (
    "old", "new", "young", "happy", "sad", "cute", "funny", "beautiful", "colorful", "nice", "lovely", "fine",
    "wonderful", "great", "pretty", "strange",
)  # fmt: skip
"""Words that change nothing in a scene; now and then a caption has one, so that an unknown adjective does no harm."""
