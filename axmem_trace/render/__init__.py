"""Writes a `Report` as text, JSON or HTML. Each renderer takes a report and returns a string.

first_screen   the first screen; `hints`: settings to try
text           the whole report for a terminal, from `tables`, `lines` and `describe`
json           the report as JSON
html/          a fragment for a notebook, and a page; `plot`: a picture with matplotlib
frames         tables as pandas data frames
comparison, fit, cards, gpu_counts, catalogue    the answers of the other commands
explain/       the meaning of a word, a key or a note
"""
