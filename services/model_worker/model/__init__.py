"""The decoder: configuration, rotary embedding, attention, experts, blocks, checkpoints. Knows no gRPC."""
