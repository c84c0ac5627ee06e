"""Generated requests, many with ids that exist: otherwise most responses would be 404.

Hypothesis draws the replacements like all other values, and schemathesis decides again whether the request is valid.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

from hypothesis import strategies as st
from schemathesis import APIOperation, Case, GenerationMode

Operation: TypeAlias = APIOperation[Any, Any, Any, Any]
AnyCase: TypeAlias = Case[Operation]

_NUMBERS = st.integers(0, 2**64)
_MOSTLY = st.sampled_from((True, True, False))


def requests(
    operation: Operation, existing: Mapping[str, list[Any]], bodies: list[dict[str, Any]]
) -> st.SearchStrategy[AnyCase]:
    """Generate valid and invalid requests. Most of them contain some or only existing values."""
    generated = st.one_of([operation.as_strategy(generation_mode=mode) for mode in GenerationMode])
    return _towards(generated, existing, bodies)


@st.composite
def _towards(
    draw: st.DrawFn,
    generated: st.SearchStrategy[AnyCase],
    existing: Mapping[str, list[Any]],
    bodies: list[dict[str, Any]],
) -> AnyCase:
    draw(_NUMBERS)  # makes every request unique, so that one without parameters is generated as often as others
    case = draw(generated)
    if draw(_MOSTLY):
        case.path_parameters = _steered(draw, case.path_parameters, existing)
        case.query = _steered(draw, case.query, existing)
    if isinstance(case.body, dict) and draw(_MOSTLY):
        sensible = draw(st.sampled_from(bodies)) if bodies else None
        case.body = _mixed(draw, case.body, sensible) if sensible else _steered(draw, case.body, existing)
    return case


def _steered(draw: st.DrawFn, values: Mapping[str, Any], existing: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Replace most values that name an object by existing ones."""
    return {
        name: draw(st.sampled_from(existing[name])) if name in existing and draw(_MOSTLY) else value
        for name, value in values.items()
    }


def _mixed(draw: st.DrawFn, generated: dict[str, Any], sensible: dict[str, Any]) -> dict[str, Any]:
    """Return `sensible` with up to two fields as generated."""
    names = draw(st.lists(st.sampled_from(sorted(generated)), max_size=2)) if generated else []
    return sensible | {name: generated[name] for name in names}
