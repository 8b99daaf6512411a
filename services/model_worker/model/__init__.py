"""The decoder: configuration, rotary embedding, attention, experts, the stack of blocks, and checkpoints. Knows no gRPC."""
