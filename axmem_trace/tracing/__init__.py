"""Recording a training step on meta: every storage's birth and death, as a GPU would see them."""
