"""The parts of a batch: token ids and masks, images and audio."""
