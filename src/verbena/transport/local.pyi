from collections.abc import Iterable
from typing import Any

class WindowHandle:
    table: Any
    index: int
    serial: int
    domain: int
    kind: int
    rkey: int
    freed: bool
    def __init__(self, table: Any, index: int, serial: int, domain: int, kind: int, rkey: int) -> None: ...

class BindInfo:
    mr: Any
    address: int
    length: int
    access: int
    virtual: bool
    renew: bool
    rkey: int | None
    parent_key: int
    def __init__(
        self,
        mr: Any = None,
        address: int = 0,
        length: int = 0,
        access: int = 0,
        virtual: bool = False,
        rkey: int | None = None,
        renew: bool = True,
    ) -> None: ...

class FastRegistration:
    mr: Any
    pages: list[Any]
    length: int
    iova: int
    offset: int
    access: int
    rkey: int | None
    def __init__(
        self,
        mr: Any,
        pages: Iterable[Any],
        length: int | None = None,
        iova: int = 0,
        access: int = 1,
        offset: int = 0,
        rkey: int | None = None,
    ) -> None: ...
