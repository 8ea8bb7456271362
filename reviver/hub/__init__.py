"""The Hugging Face Hub: fetching a base, sharing a version."""
