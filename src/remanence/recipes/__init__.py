"""Recipes that come with the package: `remanence train NAME`."""
