"""What a word of the report, a key, a note or a candidate of `fit` means: from docstrings, the schema and the table of keys.

rules      notes: the docstrings of the code that makes them
words      the report's own words
explain    a word in, its explanations out
"""
