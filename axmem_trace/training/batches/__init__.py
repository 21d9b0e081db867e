"""What a batch is made of: token ids and masks, and the images and audio beside them."""
