"""The commands of grad_flow.py: each module's `main(argv)` runs one and returns its exit code."""
