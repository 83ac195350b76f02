"""What a run is trained on: what a batch is, and how its loss is formed."""
