"""A small call of the loss, and the check that a changed argument is refused with a message."""

from __future__ import annotations

import re

import pytest

from ..conftest import batch

LOGITS, TARGET = batch(students=2, rows=3, classes=4)


def refuse(function, changed, kind, message, **more):
    arguments = {"logits": LOGITS, "target": TARGET} | changed | more
    with pytest.raises(kind, match=re.escape(message)):
        function(arguments.pop("logits"), arguments.pop("target"), **arguments)
