"""Building specs: of actors, supervisors and dynamic supervisors, unknown fields refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from serviceradar_poller.otp.errors import SpecError
from serviceradar_poller.otp.spec import (
    AutoShutdown,
    ChildSpec,
    ChildType,
    KernelStart,
    Strategy,
    SupervisorFlags,
    check_children,
)
from serviceradar_poller.otp.supervisor import Children, SupervisorStart

_FIELDS: Final = frozenset(field.name for field in dataclasses.fields(ChildSpec)) - {"id", "start"}


def build_spec(id: str, start: KernelStart, fields: Mapping[str, Any]) -> ChildSpec:
    """Make a ChildSpec, or raise SpecError that names the field at fault."""
    for name in fields:
        if name not in _FIELDS:
            raise SpecError(f"child {id!r}: {name}: unknown field")
    return ChildSpec(id=id, start=start, **fields)


def supervisor(
    id: str,
    children: Children,
    *,
    strategy: Strategy = Strategy.ONE_FOR_ONE,
    intensity: int = 1,
    period_s: float = 5.0,
    auto_shutdown: AutoShutdown = AutoShutdown.NEVER,
    context: object = None,
    **spec_fields: Any,
) -> ChildSpec:
    """
    Make the spec of a supervisor; its handle is a SupervisorRef.

    Args:
        children: In start order; a callable is evaluated anew at each start.
        intensity: Restarts tolerated within *period_s*.
        context: What children made by `member` start from.
        spec_fields: Further fields of ChildSpec.
    Raises:
        SpecError: A field or a child can't be used. For a callable's children: the start fails with it.
    """
    flags = SupervisorFlags(strategy=strategy, intensity=intensity, period_s=period_s, auto_shutdown=auto_shutdown)
    if not callable(children):
        children = check_children(children, auto_shutdown)
    return build_spec(id, SupervisorStart(flags, children, context), {"type": ChildType.SUPERVISOR, **spec_fields})


def another(spec: ChildSpec, id: str, context: object) -> ChildSpec:
    """
    Return the spec of another supervisor like *spec*: they share their children's specs, which start from *context*.

    Raises:
        SpecError: The id can't be used.
    """
    start = spec.start
    assert isinstance(start, SupervisorStart)
    return dataclasses.replace(spec, id=id, start=SupervisorStart(start.flags, start.children, context))


def dynamic_supervisor(id: str, *, intensity: int, period_s: float, max_children: int, **spec_fields: Any) -> ChildSpec:
    """
    Make the spec of a supervisor that starts empty, restarts one_for_one and stops its children all at once.

    Args:
        max_children: Specs that it accepts; restarting, quarantined and undefined ones count.
    Raises:
        SpecError: A field can't be used.
    """
    flags = SupervisorFlags(intensity=intensity, period_s=period_s, max_children=max_children, parallel_stop=True)
    return build_spec(id, SupervisorStart(flags, ()), {"type": ChildType.SUPERVISOR, **spec_fields})
