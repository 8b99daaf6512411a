"""The error that settings of all kinds raise."""


class BadSettingsError(Exception):
    """Settings that cannot be used; the message names each, its value, what is allowed and where to set it."""
