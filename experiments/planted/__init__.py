"""Random networks with one planted fault each."""
