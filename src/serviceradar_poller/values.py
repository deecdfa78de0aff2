"""Values that are made so often that the time to make one counts."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

C = TypeVar("C", bound=type)


def quick(cls: C) -> C:
    """
    Make instances of *cls*, a frozen dataclass with slots, in about half the time; to stand above the other decorator.

    A frozen dataclass sets each field through ``object.__setattr__``; ours is as good as frozen without that, as the
    type checker goes on holding everyone to it. Equality, hash and fields stay what they are.
    """
    params = getattr(cls, "__dataclass_params__")  # noqa: B009 — it is not in the type
    assert params.frozen, f"{cls.__name__} is not frozen"
    assert "__slots__" in vars(cls), f"{cls.__name__} has no slots"
    fields = [(field.name, field.type, _copy(field)) for field in dataclasses.fields(cls)]
    plain = dataclasses.make_dataclass(cls.__name__, fields, kw_only=all(f.kw_only for f in dataclasses.fields(cls)))
    cls.__init__ = plain.__init__  # type: ignore[misc]
    del cls.__setattr__, cls.__delattr__
    return cls


def _copy(field: dataclasses.Field[object]) -> object:
    if field.default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=field.default_factory)
    return dataclasses.field() if field.default is dataclasses.MISSING else dataclasses.field(default=field.default)
