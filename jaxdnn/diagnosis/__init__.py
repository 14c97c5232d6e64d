"""Will a network train, which layer stops it, why, and what to change."""
