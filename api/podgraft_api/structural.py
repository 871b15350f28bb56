"""From pydantic's JSON schema to what the API server accepts: structural OpenAPI v3, no $ref, no anyOf.

Source: kubernetes.io, "Specifying a structural schema" (Extend the Kubernetes API with CRDs).
"""

from typing import Any

Schema = dict[str, Any]
INT_OR_STRING = "x-kubernetes-int-or-string"


def structural(schema: Schema) -> Schema:
    """Return the schema with references inlined and every construct the API server forbids rewritten.

    Raises:
        ValueError: a union other than Optional or int-or-string, which has no structural form.
    """
    return _node(schema, schema.get("$defs", {}))


def _node(node: Schema, defs: dict[str, Schema]) -> Schema:
    if "$ref" in node:
        target = defs[node["$ref"].rsplit("/", 1)[1]]
        return _node(target | {key: value for key, value in node.items() if key != "$ref"}, defs)
    if "anyOf" in node:
        return _union(node, defs)
    dropped = {"title", "$defs", "default", "const", "properties", "additionalProperties", "items"}
    result = {key: value for key, value in node.items() if key not in dropped}
    if "const" in node:
        result["enum"] = [node["const"]]
    # Defaults that say nothing ([] or null) would only make every object longer.
    if node.get("default") not in (None, [], {}):
        result["default"] = _default(node)
    if "items" in node:
        result["items"] = _node(node["items"], defs)
    if "properties" in node:
        # additionalProperties is forbidden beside properties: the API server prunes unknown fields itself.
        result["properties"] = {key: _node(value, defs) for key, value in node["properties"].items()}
    elif isinstance(node.get("additionalProperties"), dict):
        result["additionalProperties"] = _node(node["additionalProperties"], defs)
    if "description" in result:
        result["description"] = " ".join(str(result["description"]).split())
    return result


def _default(node: Schema) -> Any:
    """An object's default is empty: the defaults of its fields fill it, so each stands in one place."""
    return {} if node.get("type") == "object" else node["default"]


def _union(node: Schema, defs: dict[str, Schema]) -> Schema:
    rest = {key: value for key, value in node.items() if key != "anyOf"}
    branches = [one for one in node["anyOf"] if one.get("type") != "null"]
    if rest.get(INT_OR_STRING):
        return _node(rest, defs)
    if len(branches) != 1:
        raise ValueError(f"a union of {len(branches)} types has no structural form: {node}")
    return _node(branches[0] | rest, defs)
