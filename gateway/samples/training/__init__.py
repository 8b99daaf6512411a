"""Texts to train extraction on, and others to judge it by. docs/training-data.md says how they are made."""
