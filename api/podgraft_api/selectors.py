"""Label selectors as the API server evaluates them (apimachinery, pkg/labels/selector.go)."""

from collections.abc import Mapping

from podgraft_api.livepatch import LabelSelector, Requirement


def mismatch(selector: LabelSelector, labels: Mapping[str, str]) -> str | None:
    """Return why a selector does not mean something with these labels; None when it does."""
    for key, wanted in (selector.match_labels or {}).items():
        if labels.get(key) != wanted:
            return f"label {key} is {labels.get(key, 'absent')}, not {wanted}"
    for one in selector.match_expressions or ():
        if not _meets(one, labels):
            return f"label {one.key} is {labels.get(one.key, 'absent')}, asked for is {_words(one)}"
    return None


def selector_text(selector: LabelSelector) -> str:
    """Return the selector as the parameter labelSelector of a list request."""
    parts = [f"{key}={value}" for key, value in (selector.match_labels or {}).items()]
    return ",".join([*parts, *map(_words, selector.match_expressions or ())])


def _meets(one: Requirement, labels: Mapping[str, str]) -> bool:
    match one.operator:
        case "In":
            return labels.get(one.key) in (one.values or ())
        case "NotIn":
            return labels.get(one.key) not in (one.values or ())
        case "Exists":
            return one.key in labels
        case "DoesNotExist":
            return one.key not in labels


def _words(one: Requirement) -> str:
    values = ",".join(one.values or ())
    match one.operator:
        case "In":
            return f"{one.key} in ({values})"
        case "NotIn":
            return f"{one.key} notin ({values})"
        case "Exists":
            return one.key
        case "DoesNotExist":
            return f"!{one.key}"
