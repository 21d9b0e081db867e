"""The colour of each purpose of memory, in every picture (`html/page.css` has the same)."""

COLORS = {
    "weights": "#4c78a8",
    "adapters": "#2f9c95",
    "reference": "#8d6a55",
    "gradients": "#d1a406",
    "optimizer": "#4d9a44",
    "activations": "#e67e22",
    "workspace": "#a5679a",
}
