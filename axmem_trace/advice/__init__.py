"""What follows from estimates: comparisons of runs. No formula for memory is here."""
