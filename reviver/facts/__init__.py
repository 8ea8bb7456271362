"""Facts: what a person wants the model to say, read from files and checked before any model is loaded."""
