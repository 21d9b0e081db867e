"""Trace repeated layers once. No torch here.

repetition     which layers repeat, and the names of modules and tensors in them
refuse_recipe  recipes that could treat layers differently
sections       a short model's ledger, divided into events that happen once and passes over the layers
unfold         the ledger of the whole model, and the comparison with a model that is one period shorter
facts          the tensors and modules of the whole model
"""
