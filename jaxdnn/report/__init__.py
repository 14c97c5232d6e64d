"""Charts from results on disk."""
