"""The training run after the model is built: inputs, optimizer, and the steps themselves.

layer_folding   `trace_run`: recipe to facts, ledger and notes; equal layers are traced once
trace           `record_run`: everything that is opened around a run
loading         how the weights reach the card
run             the loop of the Trainer; `evaluation`, `generation`, `rollouts`: what comes between steps
objectives/     what a batch is and what the loss does, for each training method
batches/        token ids, masks, images and audio
optimizers/     an optimizer that steps on meta, for each name
offloading/, callbacks/    what is moved to the host; axolotl's callbacks that need memory
prepared        the model's forward as accelerate wraps it
failures        errors of the model's own code, as errors of the configuration
checked_folds, shared_traces    what later estimates need not do again
"""
