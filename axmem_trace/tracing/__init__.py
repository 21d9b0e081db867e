"""Record a training step on meta: when each storage is allocated and freed, as on a GPU.

recorder          `Recorder`: the record, and the values that are known; the rest of the package uses this class
storage_record    the record itself; `storage_life`: its entry for one storage
recording_mode    the dispatch mode that reports every operator to the recorder
rules, context    tables of rules for a GPU's kernels, and what a rule can read and do
cuda_mode, autocast      make torch functions treat meta tensors like CUDA tensors
known_values      true values of small tensors, such as masks and positions
module_scopes, event_layers    which module, and which layer, an event belongs to
originals         whether an error comes from a library or from this package
patching          the only way to replace parts of libraries
result_memo, tensors     results by shapes; tensors in nested values
"""
