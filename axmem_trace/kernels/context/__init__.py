"""Attention with rows that are divided among ranks (context parallelism).

install     replaces the model's attention function
heads       ranks exchange heads for tokens, and each runs the model's own kernel (Ulysses)
gathered    keys and values of all ranks are gathered (ring, also behind an exchange of heads)
steps       each rank passes keys and values to the next one
"""
