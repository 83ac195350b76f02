"""Text generated for training and for tests."""
