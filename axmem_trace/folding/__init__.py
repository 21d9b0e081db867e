"""Trace repeated layers once. No torch here.

repetition     which layers repeat, and the names of what is in them
refuse_recipe  recipes that could treat layers differently
sections       a short model's ledger, divided into what happened once and passes over the layers
unfold         the ledger of the whole model, and the comparison with a model that is one period longer
facts          its tensors and modules
"""
