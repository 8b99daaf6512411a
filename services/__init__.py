"""The model worker, the constraint service and what they share."""
