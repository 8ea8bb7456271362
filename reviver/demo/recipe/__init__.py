"""The recipe of the demo model: an invented world, plain prose, and the training of a small model on both."""
