"""Extensions of axolotl: the command `axolotl memory`, and a plugin that predicts before training and measures during
training.

axolotl_command  `axolotl memory CONFIG.yml` (entry point group `axolotl.cli_commands`, axolotl 0.19 and later)
axolotl_plugin   `plugins: [axmem_trace.MemoryPlugin]`
plugin_keys      the plugin's keys for axolotl's schema
run_request      the configuration that axolotl runs, as arguments of this package's command line
prediction       the estimate, in a separate process
peaks            the peaks of PyTorch's allocator, by phase
callback         when the peaks are read
record           predicted and measured figures: a table, and `axmem_trace.json`
"""
