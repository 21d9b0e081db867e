"""Reserved memory of a run whose batches have rows of different lengths. No torch here.

laws       the size of each allocation at any length, from a few traces, and the proof
steps      a recording of two steps, continued for many with other lengths
draw       the lengths of the batches, at random but always the same
simulate   all of it: `simulate_lengths`
"""
