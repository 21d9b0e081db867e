"""The training run after the model is built: inputs, optimizer, and the steps themselves."""
