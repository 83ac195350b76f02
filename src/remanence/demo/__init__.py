"""`remanence demo`: on text slots, and on learned memories."""
