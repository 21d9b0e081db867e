"""Attention whose rows are divided among ranks (context parallelism).

install     the attention function that replaces the model's
heads       ranks exchange heads for tokens, and each runs the model's own kernel (Ulysses)
gathered    keys and values of all ranks are gathered (ring, also behind an exchange of heads)
steps       keys and values are passed on from rank to rank
"""
