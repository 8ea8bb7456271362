"""The words of the plain prose: nouns, verbs and adjectives, sorted by what they can sensibly be said with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """A verb in the forms that English tells apart."""

    base: str
    third: str
    past: str
    participle: str
    gerund: str


def words(text: str) -> tuple[str, ...]:
    """Split a line of words."""
    return tuple(text.split())


def _verbs(text: str) -> tuple[Verb, ...]:
    """Read verbs, one a line, in five forms."""
    return tuple(Verb(*(form.strip() for form in line.split(","))) for line in text.strip().splitlines())


def _pairs(text: str) -> dict[str, str]:
    """Read nouns as ``singular/plural`` pairs; a bare noun takes an s."""
    pairs = {}
    for word in text.split():
        singular, _, plural = word.partition("/")
        pairs[singular] = plural or singular + "s"
    return pairs


MEN = _pairs("king boy uncle man/men father prince brother son grandfather monk")
WOMEN = _pairs("queen girl aunt woman/women mother princess/princesses sister daughter grandmother widow")
PEOPLE = _pairs(
    "farmer teacher doctor sailor child/children baker guest neighbour student traveller miller hunter artist "
    "soldier judge nurse singer merchant stranger gardener"
)
BEASTS = _pairs(
    "dog cat horse bird fox/foxes goat cow hen duck wolf/wolves mouse/mice rabbit donkey owl lamb frog bear "
    "hedgehog squirrel goose/geese"
)
THINGS = _pairs(
    "basket lamp book box/boxes chair key letter blanket cup hat coat knife/knives bell rope bucket clock map coin "
    "table window wagon ladder boat picture hammer spoon bottle shoe drum kite candle"
)
FOODS = _pairs(
    "apple pear loaf/loaves cake pie egg carrot plum cherry/cherries potato/potatoes orange onion nut biscuit pancake"
)
BUILDINGS = _pairs(
    "house barn mill tower school church/churches bridge castle cottage stable shop inn library/libraries "
    "farmhouse palace"
)
NATURE = _pairs(
    "hill tree river field forest garden lake meadow valley/valleys path stream mountain road pond island cloud star "
    "storm rock flower"
)

# The groups that a verb may take as its object.
OBJECT_GROUPS: dict[str, dict[str, str]] = {
    "things": THINGS,
    "foods": FOODS,
    "buildings": BUILDINGS,
    "nature": NATURE,
    "beasts": BEASTS,
    "people": PEOPLE,
}

TRANSITIVE: dict[str, tuple[Verb, ...]] = {
    "things": _verbs("""
        carry, carries, carried, carried, carrying
        break, breaks, broke, broken, breaking
        hide, hides, hid, hidden, hiding
        steal, steals, stole, stolen, stealing
        mend, mends, mended, mended, mending
        buy, buys, bought, bought, buying
        sell, sells, sold, sold, selling
        find, finds, found, found, finding
        lose, loses, lost, lost, losing
        choose, chooses, chose, chosen, choosing"""),
    "foods": _verbs("""
        eat, eats, ate, eaten, eating
        bake, bakes, baked, baked, baking
        share, shares, shared, shared, sharing
        taste, tastes, tasted, tasted, tasting
        bring, brings, brought, brought, bringing"""),
    "buildings": _verbs("""
        build, builds, built, built, building
        enter, enters, entered, entered, entering
        leave, leaves, left, left, leaving
        paint, paints, painted, painted, painting
        visit, visits, visited, visited, visiting"""),
    "nature": _verbs("""
        cross, crosses, crossed, crossed, crossing
        see, sees, saw, seen, seeing
        reach, reaches, reached, reached, reaching
        draw, draws, drew, drawn, drawing
        admire, admires, admired, admired, admiring"""),
    "beasts": _verbs("""
        feed, feeds, fed, fed, feeding
        chase, chases, chased, chased, chasing
        follow, follows, followed, followed, following
        catch, catches, caught, caught, catching
        watch, watches, watched, watched, watching"""),
    "people": _verbs("""
        help, helps, helped, helped, helping
        know, knows, knew, known, knowing
        thank, thanks, thanked, thanked, thanking
        meet, meets, met, met, meeting
        praise, praises, praised, praised, praising"""),
}

INTRANSITIVE = _verbs("""
    sleep, sleeps, slept, slept, sleeping
    laugh, laughs, laughed, laughed, laughing
    wait, waits, waited, waited, waiting
    sing, sings, sang, sung, singing
    run, runs, ran, run, running
    rest, rests, rested, rested, resting
    work, works, worked, worked, working
    dance, dances, danced, danced, dancing
    fall, falls, fell, fallen, falling
    hide, hides, hid, hidden, hiding
    stand, stands, stood, stood, standing
    play, plays, played, played, playing""")

# Verbs whose object can be the subject itself.
REFLEXIVE = _verbs("""
    wash, washes, washed, washed, washing
    hurt, hurts, hurt, hurt, hurting
    see, sees, saw, seen, seeing
    ask, asks, asked, asked, asking
    blame, blames, blamed, blamed, blaming
    hide, hides, hid, hidden, hiding
    praise, praises, praised, praised, praising""")

LIVING_ADJECTIVES = words("old young kind hungry tired clever happy angry quiet brave lazy proud gentle shy")
THING_ADJECTIVES = words("small large red blue heavy broken new wooden empty beautiful strange clean green")
FOOD_ADJECTIVES = words("sweet fresh warm ripe round sour tasty golden")
PLACE_ADJECTIVES = words("old quiet wide narrow high famous lonely dark green northern empty")
COMPARATIVES: dict[str, str] = {
    "old": "older",
    "young": "younger",
    "tall": "taller",
    "strong": "stronger",
    "small": "smaller",
    "fast": "faster",
    "kind": "kinder",
    "happy": "happier",
    "clever": "cleverer",
    "proud": "prouder",
}
MANNER = words("slowly quietly quickly gladly carefully often seldom always early late")
PAST_TIMES = ("yesterday", "last night", "last week", "long ago", "last summer", "a year ago")
FUTURE_TIMES = ("tomorrow", "next week", "next summer", "one day soon", "next year")
HABITS = ("every day", "every morning", "in winter", "on Sundays", "in the evening", "at night", "in spring")
PREPOSITIONS = ("near", "behind", "in front of", "beside", "not far from")
MATERIALS = words("water milk bread sand snow gold wood flour rain hay")
BOYS = words("Tom Jack Peter Ben Sam Oliver Hugo Felix")
GIRLS = words("Anna Lucy Rose Mary Nina Clara Ella Sophie")
