"""jaxdnn: can this network learn, and if not, which layer stops it, why, and what to change."""
