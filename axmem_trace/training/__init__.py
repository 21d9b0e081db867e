"""The training run after the model is built: inputs, optimizer, and the steps themselves.

layer_folding   `trace_run`: makes facts, ledger and notes from a recipe; equal layers are traced once
trace           `record_run`: opens the contexts around a run
loading         how the weights are copied to the card
run             the loop of the Trainer; `evaluation`, `generation`, `rollouts`: passes before and after steps
objectives/     the batch and the loss of each training method
batches/        token ids, masks, images and audio
optimizers/     for each name, an optimizer that runs on meta
offloading/, callbacks/    tensors that are moved to the host; axolotl's callbacks that need memory
prepared        the model's forward as accelerate wraps it
failures        reports errors of the model's own code as errors of the configuration
checked_folds, shared_traces    results that later estimates use again
"""
