"""Reserved memory of a run whose batches have rows of different lengths. No torch here.

laws       the size of each allocation for rows of any length, from a few traces, and its check
steps      a recording of two steps, continued for many steps with other lengths
draw       the lengths of the batches, drawn at random from a fixed seed
simulate   `simulate_lengths`, which uses all of these
"""
