"""reviver: version control for what a language model knows."""

__version__ = "0.1.0"
