"""Images and audio of a batch, as each family's processor makes them: sizes and token counts, no pixels."""

from axmem_trace.training.batches.media.make import make_media, reads_media

__all__ = ["make_media", "reads_media"]
