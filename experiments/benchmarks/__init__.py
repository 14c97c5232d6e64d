"""What experiments/bench.py measures, and how."""
