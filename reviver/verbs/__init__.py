"""The verbs of reviver: one verb is one plain function that returns a dataclass and prints nothing."""
