"""Finds changes that make a run fit its card: each changed configuration is estimated like any other. There is no
formula for memory here.

candidates   the changes, one file for each
questions    estimates changed configurations; the same run is estimated only once
singles      each change by itself
sets         several changes together: the gentlest set that fits
largest      the largest micro batch and the longest sequence that fit
fit          `fit`, which uses all of these, in the order in which a user reads the result
"""
