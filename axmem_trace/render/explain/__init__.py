"""The meaning of a word of the report, a key, a note or a candidate of `fit`. The texts come from docstrings, the
schema and the table of keys.

rules      notes, explained by the docstrings of the code that makes them
words      the report's own words
explain    finds the explanations of a word
"""
