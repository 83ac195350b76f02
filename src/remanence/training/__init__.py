"""Teaching a decoder to write and read memory: objectives, batches, a Trainer, an optimizer."""
