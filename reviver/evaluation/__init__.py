"""What a model answers, and how probable it holds an answer. Nothing here knows how models are edited."""
