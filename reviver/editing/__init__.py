"""Knowledge editing: from facts to the filtered updates of a model's matrices."""
