"""What is trained for: the loss of a batch, and the models beside the one that is trained."""
