"""One run: from settings to a tested network."""
