"""The constraint engine: a pushdown recogniser over bytes and its token masks.

Knows neither JSON nor gRPC, neither torch nor Redis.
"""
