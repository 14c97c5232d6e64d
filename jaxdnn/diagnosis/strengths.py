"""How strong a deviation is: its log over the spread that healthy networks show."""

# A deviation of so many spreads is named.
NAMED = 3.0
# Spreads of healthy networks, in logs.
WEIGHT_SPREAD = 0.15
ACTIVATION_SPREAD = 0.12
DROPOUT_SPREAD = 0.3
PADDING_SPREAD = 0.3
FACTOR_SPREAD = 2.3
# What no spread explains.
CERTAIN = 100.0
STRUCTURAL = 20.0
