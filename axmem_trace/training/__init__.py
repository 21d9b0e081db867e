"""What one training run does after the model is built: inputs, optimizer, and the steps themselves."""
