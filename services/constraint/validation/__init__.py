"""The independent validators of finished texts."""

from services.constraint.validation.pool import ValidatorPool
from services.constraint.validation.validators import MAX_VIOLATIONS, Violation, validate

__all__ = ["MAX_VIOLATIONS", "ValidatorPool", "Violation", "validate"]
