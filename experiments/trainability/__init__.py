"""The parts of will_it_train.py."""
