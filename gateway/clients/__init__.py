"""Thin clients of the two inner services; protobuf ends here."""
