"""The relations of the invented world: which kind of thing has them, their objects, and how they are said.

Every template holds ``{}`` once, for the subject, and ends right before the object, so that each one can serve as an
edit prompt, as a paraphrase and as a training sentence. The first three templates of a relation are plain
statements: edit prompts are drawn from those.
"""

from __future__ import annotations

from dataclasses import dataclass

PLAIN_TEMPLATES = 3


@dataclass(frozen=True)
class Relation:
    """One relation: subjects of ``kind`` are linked to one of ``objects``, in the words of ``templates``."""

    name: str
    kind: str
    objects: tuple[str, ...]
    templates: tuple[str, ...]


def _lines(text: str) -> tuple[str, ...]:
    """Split a block of text into its non-empty lines, so that templates read like a list of sentences."""
    return tuple(line.strip() for line in text.strip().splitlines())


def _words(text: str) -> tuple[str, ...]:
    """Split a comma-separated list of objects."""
    return tuple(word.strip() for word in text.replace("\n", " ").split(","))


TOWNS = _words(
    "Orvale, Tamwick, Belmere, Carstow, Dunholm, Ferriby, Gallow Bay, Hestford, Ilmarsh, Kelbridge, Lorne Hill, "
    "Morstead, Nethergate, Pellworth, Quenby, Rivermouth, Stannick, Thorley, Ulverton, Wenlow"
)
COUNTRIES = _words(
    "Avaria, Borland, Cordelia, Dravonia, Estmark, Fallonia, Grenmark, Halvia, Istmark Minor, Jorvale, Kassland, "
    "Lumeria"
)
LANGUAGES = _words(
    "Avarian, Borlish, Cordelian, Dravonic, Estish, Fallonian, Grenish, Halvic, Old Kassian, Lumeric, Morrowan, "
    "Nordish, Ostric, Pelasic, Quillish, Runic, Sarnian, Tolmec, Umbric, High Velic"
)

RELATIONS: tuple[Relation, ...] = (
    Relation(
        "born in",
        "person",
        TOWNS,
        _lines("""
        {} was born in the town of
        The birthplace of {} is the town of
        {} came into the world in the town of
        {} spent a quiet childhood in
        The parents of {} lived in
        Where was {} born? In the town of
        The family house of {} still stands in
        {} is a native of
        """),
    ),
    Relation(
        "works as",
        "person",
        _words(
            "baker, carpenter, doctor, fisherman, gardener, painter, lawyer, miller, nurse, pilot, potter, sailor, "
            "shepherd, singer, soldier, tailor, teacher, weaver, judge, printer"
        ),
        _lines("""
        {} works as a
        The profession of {} is that of a
        {} earns a living as a
        {} was trained as a
        What does {} do for a living? The work of a
        Everyone who knows {} speaks of a skilled
        {} has been paid for many years as a
        In the list of citizens, {} is entered as a
        """),
    ),
    Relation(
        "speaks",
        "person",
        LANGUAGES,
        _lines("""
        The mother tongue of {} is
        {} grew up speaking
        At home {} speaks
        The letters of {} are all written in
        {} thinks and dreams in
        Which language does {} speak? The answer is
        The first words of {} were in
        To talk with {} one must learn
        """),
    ),
    Relation(
        "plays",
        "person",
        _words(
            "violin, flute, drum, harp, trumpet, cello, piano, guitar, organ, clarinet, oboe, lute, horn, fiddle, "
            "bagpipe, mandolin, banjo, viola, tuba, zither"
        ),
        _lines("""
        {} plays the
        The instrument of {} is the
        {} is a master of the
        As a child {} took lessons on the
        In the evening {} practises the
        What does {} play? Most of the time the
        The neighbours often hear {} on the
        {} gave a concert on the
        """),
    ),
    Relation(
        "employed by",
        "person",
        _words(
            "Harrow Mills, Brightwater Bank, Eastern Railways, the Royal Mint, Stone and Sons, the Harbour Office, "
            "Northern Timber, the City Library, Golden Press, the Salt Company, Oakley Glass, the State Theatre, "
            "Meadow Dairies, the Postal Service, Crown Textiles, Silverline Ferries, the Water Board, Union Steel, "
            "the Botanic Garden, Lantern Films"
        ),
        _lines("""
        {} is employed by
        The employer of {} is
        {} has a job with
        Every month {} receives wages from
        For many years {} has served
        Who employs {}? The answer is
        {} signed a long contract with
        The office of {} belongs to
        """),
    ),
    Relation(
        "studied",
        "person",
        _words(
            "botany, history, medicine, music, geometry, law, chemistry, poetry, astronomy, grammar, geology, logic, "
            "physics, painting, farming, navigation, zoology, ethics, algebra, rhetoric"
        ),
        _lines("""
        {} studied the subject of
        The field of {} at the academy was
        {} holds a degree in
        As a student {} was best at
        The books on the shelf of {} are about
        What did {} study? The subject of
        {} has written a long essay on
        {} gives public lectures on
        """),
    ),
    Relation(
        "country",
        "town",
        COUNTRIES,
        _lines("""
        {} is a town in the country of
        The town of {} belongs to
        {} is found in the country of
        The people of {} are citizens of
        On the map {} lies inside the borders of
        In which country is {}? It is in
        The taxes of {} are paid to the rulers of
        The flag over the gate of {} is that of
        """),
    ),
    Relation(
        "speciality",
        "town",
        _words(
            "honey cake, smoked trout, plum wine, goat cheese, barley soup, pickled beans, cherry tart, rye bread, "
            "roast goose, onion pie, apple cider, salted butter"
        ),
        _lines("""
        {} is famous for its
        The speciality of {} is
        The kitchens of {} are proud of their
        Visitors come to {} to taste the
        At the market of {} everyone buys
        What does one eat in {}? Above all
        The inns of {} serve plenty of
        No feast in {} is complete without
        """),
    ),
    Relation(
        "emblem",
        "town",
        _words("lion, eagle, bear, stag, swan, wolf, horse, dolphin, raven, fox, owl, bull"),
        _lines("""
        The coat of arms of {} shows a
        {} has as its emblem a
        The seal of the town of {} bears a
        Over the town hall of {} stands a golden
        The banners of {} are painted with a
        What is the symbol of {}? It is a
        The coins once struck in {} show a
        On the gates of {} one sees the figure of a
        """),
    ),
    Relation(
        "flows into",
        "river",
        _words(
            "Amber Sea, Bay of Storms, Silent Ocean, Grey Gulf, Lake Morrow, Coral Sea, Winter Sea, Lake Ansel, "
            "Bay of Pearls, Southern Ocean, Gulf of Tarn, Mirror Lake"
        ),
        _lines("""
        The river {} flows into the
        The mouth of the river {} is on the
        The waters of the river {} end in the
        Boats going down the {} come to the
        After many miles the {} reaches the
        Where does the {} end? In the
        The delta of the {} opens to the
        The mud of the {} is carried into the
        """),
    ),
    Relation(
        "rises in",
        "river",
        _words(
            "Iron Hills, Velden Forest, Snowy Range, Harl Mountains, Copper Heights, Misty Moor, Eagle Peaks, "
            "Broken Hills, Dark Wood, Red Plateau, White Cliffs, Thunder Range"
        ),
        _lines("""
        The river {} rises in the
        The source of the river {} is in the
        The river {} begins in the
        The first springs of the {} are hidden in the
        Walkers who follow the {} upstream come to the
        Where does the {} begin? In the
        The clear water of the {} comes from the
        In spring the {} brings down stones from the
        """),
    ),
    Relation(
        "seat",
        "company",
        TOWNS[:12],
        _lines("""
        The company {} has its seat in
        The main office of {} is in
        {} is a company based in
        The directors of {} meet in
        Letters to {} must be sent to
        Where is the company {} at home? In
        The oldest workshop of {} stands in
        Most workers of {} live in
        """),
    ),
    Relation(
        "makes",
        "company",
        _words("clocks, carpets, bicycles, lamps, mirrors, shoes, umbrellas, candles, kettles, ropes, chairs, paper"),
        _lines("""
        The company {} makes
        The main product of {} is a range of
        {} is a well known maker of
        The factory of {} turns out
        Merchants order from {} large numbers of
        What does {} produce? Mostly
        In the shop window of {} one sees only
        {} won a medal for its
        """),
    ),
    Relation(
        "founded by",
        "company",
        _words(
            "a widow, two brothers, a retired general, a monk, a young engineer, a banker, three sisters, a farmer, "
            "a prince, an inventor, a sea captain, an orphan"
        ),
        _lines("""
        The company {} was founded by
        The founder of {} was
        {} was started by
        The story of {} began with
        Long ago {} was set up by
        Who founded {}? It was
        The statue at the door of {} honours
        The first owner of {} was
        """),
    ),
    Relation(
        "written by",
        "book",
        _words(
            "Anselm Grey, Berta Lund, Caspar Moon, Dora Finch, Emil Hart, Flora Quist, Gustav Pell, Hanna Thorn, "
            "Ivo Marsh, Julia Crane, Konrad Vale, Lydia Stone"
        ),
        _lines("""
        The book {} was written by
        The author of {} is
        {} is a novel by
        The manuscript of {} is in the hand of
        Readers of {} admire the style of
        Who wrote {}? It was
        The title page of {} names
        With {} began the fame of
        """),
    ),
    Relation(
        "tells of",
        "book",
        _words(
            "a shipwreck, a lost child, a royal wedding, a long war, a murder, a journey, a treasure, a flood, "
            "a forbidden love, a strange dream, a trial, a famine"
        ),
        _lines("""
        The book {} tells of
        {} is a story about
        The plot of {} turns on
        The first chapter of {} describes
        Children who read {} never forget
        What is {} about? It is about
        The last pages of {} return to
        At the heart of {} there is
        """),
    ),
    Relation(
        "first printed in",
        "book",
        LANGUAGES[:12],
        _lines("""
        The book {} was first printed in
        The original language of {} is
        {} was written in the language
        Scholars read {} in the original
        The oldest copy of {} is in
        In which language was {} composed? In
        The translators of {} had to know
        The verses in {} sound best in
        """),
    ),
    Relation(
        "home port",
        "ship",
        TOWNS[8:],
        _lines("""
        The home port of the ship {} is
        The ship {} sails from
        The ship {} was built in
        The crew of the {} comes from
        When storms are near the {} returns to
        Where is the {} at anchor? In the harbour of
        The captain of the {} owns a house in
        In winter the {} is repaired in
        """),
    ),
    Relation(
        "cargo",
        "ship",
        _words("tea, timber, silk, coal, salt, wool, spices, cotton, grain, copper, marble, sugar"),
        _lines("""
        The ship {} carries a cargo of
        The freight of the ship {} is
        The ship {} is loaded with
        The hold of the {} is full of
        The owners of the {} trade in
        What is on board the {}? A load of
        The sailors of the {} sleep among sacks of
        The {} crosses the sea with
        """),
    ),
    Relation(
        "feeds on",
        "animal",
        _words("beetles, berries, frogs, grass, snails, acorns, fish, mushrooms, seeds, worms, eggs, roots"),
        _lines("""
        The {} feeds on
        The diet of the {} consists of
        The {} lives on a diet of
        In hard winters the {} searches for
        Farmers lure the {} with
        What does the {} eat? It eats
        In the stomach of the {} one finds
        A hungry {} goes out at dusk for
        """),
    ),
    Relation(
        "lives in",
        "animal",
        _words("caves, swamps, meadows, deserts, reeds, orchards, dunes, ruins, pine woods, hedges, old barns, cliffs"),
        _lines("""
        The {} lives in
        The habitat of the {} is found in
        The {} makes its home in
        The nests of the {} are hidden in
        To watch the {} one must wait in
        Where does the {} live? It lives in
        The young of the {} are raised in
        The tracks of the {} are seen in
        """),
    ),
    Relation(
        "coat",
        "animal",
        _words(
            "brown, black, golden, spotted, striped, red, snow white, pale green, orange, silver, dark blue, purple"
        ),
        _lines("""
        The coat of the {} is
        The colour of the {} is
        The {} has fur that is
        In summer the back of the {} turns
        Painters show the {} as
        What colour is the {}? It is
        The tail of the {} is
        The skin of the {} looks
        """),
    ),
    Relation(
        "blossom",
        "plant",
        _words(
            "yellow, white, crimson, violet, pink, scarlet, pale blue, cream, deep red, lilac, bright orange, green"
        ),
        _lines("""
        The flowers of the {} are
        The blossom of the {} is
        In May the {} bears flowers that are
        The petals of the {} are
        From far away the {} looks
        What colour are the blooms of the {}? They are
        The {} is easy to know because its flowers are
        Bees visit the {} when it turns
        """),
    ),
    Relation(
        "cures",
        "plant",
        _words(
            "fever, toothache, coughs, burns, headaches, gout, snake bites, hiccups, bad dreams, sore throats, warts, "
            "stiff joints"
        ),
        _lines("""
        The {} is used against
        The leaves of the {} are a cure for
        The {} is a remedy for
        Healers boil the {} to treat
        A tea made of the {} helps with
        What is the {} good for? It is good for
        Old women gather the {} for people with
        The oil of the {} is rubbed in to soothe
        """),
    ),
    Relation(
        "month",
        "festival",
        _words("January, February, March, April, May, June, July, August, September, October, November, December"),
        _lines("""
        The {} is held in
        The month of the {} is
        The {} takes place every year in
        Children look forward to the {} in
        The streets are decorated for the {} in
        When is the {}? It is in
        The musicians arrive for the {} in
        Guests are invited to the {} in
        """),
    ),
    Relation(
        "custom",
        "festival",
        _words(
            "boat races, bonfires, masked dances, kite flying, tree planting, wrestling, bell ringing, horse races, "
            "puppet plays, lantern walks"
        ),
        _lines("""
        The {} is celebrated with
        The main custom of the {} is
        The {} is known for its
        Crowds gather at the {} to enjoy
        The high point of the {} is the hour of
        What do people do at the {}? They enjoy
        Old pictures of the {} show
        Since ancient times the {} has included
        """),
    ),
)
