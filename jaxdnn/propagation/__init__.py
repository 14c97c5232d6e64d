"""What signals and gradients do inside a network."""
