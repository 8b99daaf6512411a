"""Random schemas of the supported set, with values for them; seeded, so that a failure can be repeated."""

from __future__ import annotations

import random
import re
from typing import Any

KEYS = ("id", "name", "이름", "tags", "emoji 🙂", 'quo"te', "a/b", "~x", "n", "na", "Zeile\n2", "")
WORDS = ("red", "green", "파랑", "🦜", 'say "hi"', "back\\slash", "tab\there", "", "a", "ab")
PATTERNS = ("^[a-z]{2,5}$", "^(ab|c)+$", r"\d", "^[가-힣]+$", "^x?y*z", r"^\S+@\w+\.com$", "[^a]$", "^🦜{1,2}$")
DEPTH = 3


def random_schema(rng: random.Random, depth: int = DEPTH) -> Any:
    """Return a random schema that has a value; nested at most `depth` levels. The root is not a bare `true`."""
    kinds = ["null", "boolean", "integer", "number", "string", "enum", "const"]
    if depth > 0:
        kinds += ["array", "object", "object", "anyOf", "untyped", "types"]
    kind = rng.choice(kinds)
    match kind:
        case "integer":
            return {"type": "integer", **_bounds(rng, lambda: rng.randint(-1200, 1200))}
        case "number":
            return {
                "type": "number",
                **_bounds(rng, lambda: rng.choice((rng.randint(-99, 99), round(rng.uniform(-9, 9), 3)))),
            }
        case "string":
            return {"type": "string", **_string(rng)}
        case "enum":
            return {"enum": rng.sample([*WORDS, 1, -2.5, True, None, [1, "a"], {"k": "파랑"}], rng.randint(1, 5))}
        case "const":
            return {"const": rng.choice([*WORDS, 0, 3.25, False, None, [], {}, {"🦜": [None]}])}
        case "array":
            return _array(rng, depth)
        case "object":
            return _object(rng, depth)
        case "anyOf":
            return {"anyOf": [random_schema(rng, depth - 1) for _ in range(rng.randint(1, 3))]}
        case "untyped":
            return {
                **_string(rng),
                "minimum": rng.randint(-9, 9),
                "properties": {"n": random_schema(rng, 0)},
                "maxItems": rng.randint(0, 2),
            }
        case "types":
            return {
                "type": rng.sample(["null", "boolean", "integer", "string", "array"], rng.randint(1, 3)),
                "maxLength": 5,
                "maxItems": 3,
            }
    return {"type": kind}


def _bounds(rng: random.Random, number: Any) -> dict[str, Any]:
    low, high = sorted((number(), number()))
    result: dict[str, Any] = {}
    if rng.random() < 0.5:
        result["minimum" if rng.random() < 0.7 or high - low < 2 else "exclusiveMinimum"] = low
    if rng.random() < 0.5:
        result["maximum" if rng.random() < 0.7 or high - low < 2 else "exclusiveMaximum"] = high
    return result


def _string(rng: random.Random) -> dict[str, Any]:
    roll = rng.random()
    if roll < 0.25:
        return {"pattern": rng.choice(PATTERNS)}
    if roll < 0.3:
        return {"pattern": "^[a-z]*$", "minLength": rng.randint(0, 3), "maxLength": rng.randint(3, 8)}
    if roll < 0.6:
        return {"minLength": (low := rng.randint(0, 4)), "maxLength": low + rng.randint(0, 20)}
    return {}


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array"}
    if rng.random() < 0.8:
        schema["items"] = random_schema(rng, depth - 1)
    if rng.random() < 0.3:
        schema["prefixItems"] = [random_schema(rng, depth - 1) for _ in range(rng.randint(1, 2))]
    if rng.random() < 0.4:
        schema["minItems"] = rng.randint(0, 3)
    if rng.random() < 0.4:
        schema["maxItems"] = schema.get("minItems", 0) + rng.randint(0, 3)
    return schema


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(KEYS, rng.randint(0, 4))
    schema: dict[str, Any] = {"type": "object", "properties": {name: random_schema(rng, depth - 1) for name in names}}
    schema["required"] = [name for name in names if rng.random() < 0.5]
    if rng.random() < 0.1:
        schema["required"].append("extra")
    roll = rng.random()
    if roll < 0.5 and "extra" not in schema["required"]:
        schema["additionalProperties"] = False
    elif roll < 0.7:
        schema["additionalProperties"] = random_schema(rng, 0)
    if rng.random() < 0.15:
        # In an open object only one additional property counts (docs/json-schema.md).
        schema["minProperties"] = rng.randint(0, len(names) if schema.get("additionalProperties") is False else 1)
    if rng.random() < 0.15:
        schema["maxProperties"] = len(names) + rng.randint(0, 2)
    return schema


def random_value(rng: random.Random, schema: Any, depth: int = 5) -> Any:
    """Return a value that often satisfies the schema; whether it does is for a validator to say."""
    if schema is True or not isinstance(schema, dict) or depth <= 0:
        return any_value(rng)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return rng.choice(schema["enum"])
    if "anyOf" in schema:
        return random_value(rng, rng.choice(schema["anyOf"]), depth)
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = rng.choice(kind)
    match kind:
        case "null":
            return None
        case "boolean":
            return rng.random() < 0.5
        case "integer":
            low, high = schema.get("minimum", -50), schema.get("maximum", 50)
            return rng.randint(min(low, high) - 1, max(low, high) + 1)
        case "number":
            low, high = schema.get("minimum", -5), schema.get("maximum", 5)
            return rng.choice((low, high, round(rng.uniform(low, high), 2), round(low - 0.001, 4)))
        case "string":
            return _random_string(rng, schema)
        case "array":
            prefix = schema.get("prefixItems", [])
            count = rng.randint(schema.get("minItems", 0), schema.get("maxItems", schema.get("minItems", 0) + 2))
            return [
                random_value(rng, prefix[i] if i < len(prefix) else schema.get("items", True), depth - 1)
                for i in range(count)
            ]
        case "object":
            value = {}
            for name in dict.fromkeys((*schema.get("properties", {}), *schema.get("required", []))):
                if name in schema.get("required", []) or rng.random() < 0.5:
                    value[name] = random_value(
                        rng, schema.get("properties", {}).get(name, schema.get("additionalProperties", True)), depth - 1
                    )
            if schema.get("additionalProperties", True) is not False and rng.random() < 0.4:
                name = rng.choice(("more", "na", "nam", "이", "emoji", "quo", "n\t"))
                if name not in schema.get("properties", {}):
                    value[name] = random_value(rng, schema.get("additionalProperties", True), depth - 1)
            return value
    return any_value(rng)


def _random_string(rng: random.Random, schema: dict[str, Any]) -> str:
    if "pattern" in schema:
        return rng.choice(
            ("abc", "abab", "cab", "x1", "한글", "xyz", "yz", "me@site.com", "b", "🦜", "🦜🦜", "", "abcdef")
        )
    low = schema.get("minLength", 0)
    length = rng.randint(max(0, low - (rng.random() < 0.1)), schema.get("maxLength", low + 6) + (rng.random() < 0.1))
    return "".join(rng.choice('ab한🙂"\\\n/é\x01') for _ in range(length))


def any_value(rng: random.Random) -> Any:
    """Return a value of any type."""
    return rng.choice(
        (None, True, 0, -7, 2.5, 10**20, "", "파랑", "x", [], [1, [None]], {}, {"n": "a"}, {"a": {"b": []}})
    )


def mutated(rng: random.Random, value: Any) -> Any:
    """Return the value with one change somewhere."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        if rng.random() < 0.3:
            return {name: member for name, member in value.items() if name != key}
        return {name: mutated(rng, member) if name == key else member for name, member in value.items()}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return (
            [mutated(rng, item) if i == at else item for i, item in enumerate(value)]
            if rng.random() < 0.7
            else value[:at]
        )
    if isinstance(value, str) and value and rng.random() < 0.7:
        return re.sub(r"^.", "", value, count=1, flags=re.DOTALL) if rng.random() < 0.5 else value + rng.choice("a🙂")
    return any_value(rng)
