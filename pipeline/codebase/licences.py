"""Which licence code stands under: SPDX identifiers, from a line in a file or the words of a licence file."""

from __future__ import annotations

import re
from collections.abc import Collection

LICENCE_FILE = re.compile(r"(?:licen[cs]e|copying|unlicense)(?:[.\-_].*)?", re.IGNORECASE)

_SPDX = re.compile(r"SPDX-License-Identifier:[ \t]*(\(*[A-Za-z0-9][\w.+:() \t-]*?)\s*(?:\*/|-->|\*|\n|$)")
_BEGINNING = 4_000  # characters in which a file names its licence

# Phrases that all have to be there, in words separated by single spaces. A file that holds or names several licences is
# under the one whose first phrase comes first; what is all in another (BSD-2 in BSD-3) stands after that.
_PHRASES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Apache-2.0", ("apache license", "version 2.0")),
    ("MPL-2.0", ("mozilla public license", "2.0")),
    ("AGPL-3.0-only", ("gnu affero general public license", "version 3")),
    ("LGPL-3.0-only", ("gnu lesser general public license", "version 3")),
    ("LGPL-2.1-only", ("gnu lesser general public license", "version 2.1")),
    ("GPL-3.0-only", ("gnu general public license", "version 3, 29 june 2007")),
    ("GPL-2.0-only", ("gnu general public license", "version 2, june 1991")),
    ("Unlicense", ("this is free and unencumbered software released into the public domain",)),
    ("Python-2.0", ("python software foundation license version 2",)),
    (
        "BSD-3-Clause",
        ("redistribution and use in source and binary forms", "must retain the above", "endorse or promote products"),
    ),
    ("BSD-2-Clause", ("redistribution and use in source and binary forms", "must retain the above")),
    ("ISC", ("permission to use, copy, modify, and/or distribute this software for any purpose",)),
    ("ISC", ("permission to use, copy, modify, and distribute this software for any purpose",)),
    ("MIT", ("permission is hereby granted, free of charge, to any person obtaining a copy", "without restriction")),
)


def licence_of_file(text: str) -> str | None:
    """What an SPDX line near its beginning says."""
    found = _SPDX.search(text, 0, _BEGINNING)
    return found[1] if found else None


def licence_of_text(text: str) -> str | None:
    """Which licence a LICENSE or COPYING file holds; None for one that is not known.

    The text does not tell whether later versions of a GNU licence may be used, so the narrower reading is returned.
    """
    if named := licence_of_file(text):
        return named
    words = " ".join(text.lower().split())
    fits = [
        (words.index(phrases[0]), place)
        for place, (_, phrases) in enumerate(_PHRASES)
        if all(phrase in words for phrase in phrases)
    ]
    return _PHRASES[min(fits)[1]][0] if fits else None


def is_allowed(licence: str | None, allowed: Collection[str]) -> bool:
    """Whether an SPDX expression can be kept to with the allowed licences alone. `GPL-3.0` also allows its -only and
    -or-later forms. An expression that both chooses and joins needs all that it names."""
    if not allowed:
        return True
    if licence is None:
        return False
    names = {name.lower() for name in allowed}
    names |= {name + ending for name in names for ending in ("-only", "-or-later")}
    plain = re.sub(r"(?i)\s+with\s+[\w.-]+", "", licence.replace("(", " ").replace(")", " "))
    parts = re.split(r"(?i)\s+(?:or|and)\s+", plain)
    fits = [part.strip().lower() in names for part in parts]
    return any(fits) if not re.search(r"(?i)\sand\s", plain) else all(fits)
