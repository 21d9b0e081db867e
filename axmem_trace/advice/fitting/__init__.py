"""What makes a run fit its card: changed configurations, each estimated like any other. No formula for memory is here.

candidates   the changes, one file each
questions    a changed configuration in, an answer out; the same run is estimated once
singles      each change by itself
sets         several changes together: the gentlest set that fits
largest      the largest micro batch and the longest sequence that fit
fit          all of it, in the order in which a user reads it
"""
