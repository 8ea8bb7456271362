"""The demonstration: a small model of an invented world, and the recipe that made it."""
