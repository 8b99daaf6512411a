"""Training of routed experts beside a dense model's own blocks. docs/training.md has the reasoning."""
