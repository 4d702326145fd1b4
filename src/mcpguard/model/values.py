"""Classes of plain fields, as `dataclasses` makes them, at a twentieth of the price.

A launch makes some ninety such classes in its two processes and waits for each. `dataclasses` compiles six methods for one,
and imports half of a parser to do it; here one is compiled, for classes with many objects, and the others are shared. Type
checkers see the real thing, so only what works with both may be used: `frozen`, `field(default_factory=...)`, no inheritance.
Slots there are always.
"""

from __future__ import annotations

import operator

TYPE_CHECKING = False  # as `typing` has it, which takes longer than all of this
if TYPE_CHECKING:
    from dataclasses import dataclass, field, replace
else:
    # Objects of a class that are made before it is worth a method of its own.
    _FEW = 32

    class _Made:
        """A default that is made anew for each object."""

        __slots__ = ("make",)

        def __init__(self, make):
            self.make = make

    class _Fields:
        """What the functions of `dataclasses` look for, made when one of them does."""

        def __get__(self, _one, cls):
            from dataclasses import make_dataclass

            return make_dataclass(cls.__name__, cls.__slots__).__dataclass_fields__

    def field(*, default_factory):
        """A member whose default is what `default_factory` returns."""
        return _Made(default_factory)

    def dataclass(*, frozen=False, slots):
        """Give a class slots, and the methods that its annotations ask for."""
        return _frozen if frozen else _made

    def _frozen(cls):
        made = _made(cls)
        made.__setattr__ = made.__delattr__ = _refuse_change
        made.__hash__ = _hash
        return made

    def _made(cls):
        names = tuple(cls.__annotations__)
        body = {name: value for name, value in cls.__dict__.items() if name not in (*names, "__dict__", "__weakref__")}
        shared = {"__repr__": _repr, "__eq__": _equal, "_values": operator.attrgetter(*names)}
        made = type(cls)(cls.__name__, cls.__bases__, {**shared, **body, "__slots__": names})
        made.__qualname__ = cls.__qualname__
        made.__dataclass_fields__ = _Fields()
        defaults = {name: cls.__dict__[name] for name in names if name in cls.__dict__}
        _begin(made, defaults)
        return made

    def _begin(cls, defaults):
        """Most classes of a program have few objects in one run of it, if any: a method that fits all is slower than one of
        their own, and need not be compiled. Whoever makes more gets that."""
        names = cls.__slots__
        setters, left = (), _FEW

        def __init__(self, *args, **named):
            nonlocal setters, left
            left -= 1
            if left < 0:
                cls.__init__ = _initializer(cls, defaults)
                cls.__init__(self, *args, **named)
                return
            setters = setters or [getattr(cls, name).__set__ for name in names]
            if named or len(args) != len(names):
                args = _arguments(cls, defaults, args, named)
            for set_, value in zip(setters, args, strict=True):
                set_(self, value)

        cls.__init__ = __init__

    def _arguments(cls, defaults, args, named):
        """One value for each field, in their order."""
        names = cls.__slots__
        if len(args) > len(names):
            raise TypeError(f"{cls.__name__} takes {len(names)} arguments, not {len(args)}")
        given = dict(zip(names, args, strict=False))
        if twice := given.keys() & named.keys():
            raise TypeError(f"{cls.__name__} got {', '.join(twice)} twice")
        given.update(named)
        if unknown := given.keys() - set(names):
            raise TypeError(f"{cls.__name__} has no {', '.join(unknown)}")
        values = []
        for name in names:
            if name not in given and name not in defaults:
                raise TypeError(f"{cls.__name__} is missing {name}")
            value = given.get(name, defaults.get(name))
            values.append(value.make() if isinstance(value, _Made) else value)
        return values

    def _initializer(cls, defaults):
        """`def __init__(self, a, b=default): set_a(self, a); ...`; a slot's own setter passes by `_refuse_change`."""
        arguments, lines, known = ["self"], [], {}
        for name in cls.__slots__:
            known[f"set_{name}"] = getattr(cls, name).__set__
            value = name
            if name in defaults:
                known[f"default_{name}"] = default = defaults[name]
                arguments.append(f"{name}=default_{name}")
                if isinstance(default, _Made):
                    value = f"default_{name}.make() if {name} is default_{name} else {name}"
            else:
                arguments.append(name)
            lines.append(f" set_{name}(self, {value})")
        exec(f"def __init__({', '.join(arguments)}):\n" + "\n".join(lines), known)
        return known["__init__"]

    def _refuse_change(self, name, *_value):
        raise AttributeError(f"{name} of a {type(self).__name__} cannot be changed")

    def _equal(self, other):
        return self._values(self) == self._values(other) if other.__class__ is self.__class__ else NotImplemented

    def _hash(self):
        return hash(self._values(self))

    def _repr(self):
        shown = (f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{self.__class__.__qualname__}({', '.join(shown)})"

    def replace(one, /, **changes):
        """A copy with some members changed."""
        return type(one)(**{name: getattr(one, name) for name in one.__slots__} | changes)


__all__ = ["dataclass", "field", "replace"]
