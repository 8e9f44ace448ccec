"""Keys, tokens, passwords and private certificates in a text, replaced before anything else sees it. Imports no torch.

What is looked for is `detect-secrets`' own: its detectors' patterns, its keywords, its entropy. They are run as
patterns, for two reasons: a replacement needs to know where a secret stands, which a detector's answer does not say,
and a detector may ask the provider whether a key works, which must never happen here.

A secret's place is taken by a word such as `REDACTED_AWS_KEY`: letters and underscores only, so that it is as good
inside quotes, in a URL and as a bare word, and the code around it still parses. What is replaced once is replaced
wherever it stands in the same text.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

PLACEHOLDER = re.compile(r"REDACTED_[A-Z_]+")

_LONGEST_LINE = 2_000  # characters; of a longer line only the surroundings of what looks like a secret are searched
_BEFORE, _AFTER = 300, 1_000


_VAGUE = ("High Entropy String", "Secret Keyword")


class _Found(NamedTuple):
    start: int
    end: int
    kind: str
    placeholder: str


@dataclass(frozen=True)
class _Detector:
    """kind: as it is counted. whole: the match is the secret, not its first group."""

    kind: str
    placeholder: str
    patterns: tuple[re.Pattern[str], ...]
    whole: bool


def redact(text: str) -> tuple[str, Mapping[str, int]]:
    """The text without its secrets, and how many each detector found. What was redacted before is left as it is."""
    found = _one_after_another([*_blocks(text), *_in_lines(text)])
    found = _one_after_another([*found, *_elsewhere(text, found)])
    if not found:
        return text, {}
    pieces: list[str] = []
    at = 0
    for secret in found:
        pieces += [text[at : secret.start], secret.placeholder]
        at = secret.end
    return "".join([*pieces, text[at:]]), dict(Counter(secret.kind for secret in found))


def _one_after_another(found: list[_Found]) -> list[_Found]:
    """In order. Those that overlap become one, so that no end of either stays, named after the longer one or the one
    whose form is known."""
    joined: list[_Found] = []
    for secret in sorted(found):
        if joined and secret.start < joined[-1].end:
            before = joined.pop()
            better = max(before, secret, key=lambda each: (each.kind not in _VAGUE, each.end - each.start))
            secret = better._replace(start=before.start, end=max(before.end, secret.end))
        joined.append(secret)
    return joined


def _elsewhere(text: str, found: list[_Found]) -> Iterator[_Found]:
    """Where else the text repeats what was found, unless it is short or a word that code may well use otherwise."""
    for value, secret in {text[each.start : each.end]: each for each in found}.items():
        if not (8 <= len(value) <= _LONGEST_LINE and re.search(r"[^A-Za-z_]", value)):
            continue
        at = text.find(value)
        while at >= 0:
            end = at + len(value)
            if not (text[at - 1 : at].isalnum() or text[end : end + 1].isalnum()):
                yield secret._replace(start=at, end=end)
            at = text.find(value, end)


# ---- blocks of several lines ----

_ARMOURED = re.compile(
    r"-----BEGIN (?P<what>[A-Z0-9 ]*?(?:PRIVATE KEY(?: BLOCK)?|CERTIFICATE|PKCS7|PKCS12))-----"
    r"(?P<body>(?:(?!-----BEGIN ).){0,65536}?)-----END (?P=what)-----",
    re.DOTALL,
)
_CUT_OFF = re.compile(  # the end is missing: the lines of base64 that follow
    r"-----BEGIN [A-Z0-9 ]*?PRIVATE KEY(?: BLOCK)?-----"
    r"(?:(?:\\[rn]|[\s\"'+#*/;,>|])*(?:[A-Za-z-]{3,20}: [^\n\\\"]{1,100}|[A-Za-z0-9+/=]{32,})){1,400}"
)
_PUTTY = re.compile(r"PuTTY-User-Key-File-\d:.{0,65536}?Private-(?:MAC|Hash): ?[0-9a-fA-F]+", re.DOTALL)
_BASE64_LINE = re.compile(r"[A-Za-z0-9+/=]{32}")


def _blocks(text: str) -> Iterator[_Found]:
    """Armoured keys and certificates, from BEGIN to END, however the lines between are quoted or indented.

    A pair of markers with no key between them, as in a program that looks for one, is left alone.
    """
    if "-----BEGIN " in text:
        for match in _ARMOURED.finditer(text):
            if _BASE64_LINE.search(match["body"]):
                private = "PRIVATE KEY" in match["what"]
                kind = ("Private Key", "REDACTED_PRIVATE_KEY") if private else ("Certificate", "REDACTED_CERTIFICATE")
                yield _Found(*match.span(), *kind)
        for match in _CUT_OFF.finditer(text):
            yield _Found(*match.span(), "Private Key", "REDACTED_PRIVATE_KEY")
    if "PuTTY-User-Key-File-" in text:
        for match in _PUTTY.finditer(text):
            yield _Found(*match.span(), "Private Key", "REDACTED_PRIVATE_KEY")


# ---- within a line ----

# Something of every secret that is found below: the rest of the text is not looked at. Each begins with a literal,
# which `re` finds as fast as memory is read; as one expression with alternatives they take ten times as long.
_TELLING = tuple(
    re.compile(form)
    for form in (
        r"A3T[A-Z0-9]", r"ABIA[0-9A-Z]", r"AKIA[0-9A-Z]", r"ASIA[0-9A-Z]", r"ACCA[0-9A-Z]", r"AKC[a-zA-Z0-9]",
        r"AP[0-9A-F][a-zA-Z0-9]{8}", r"AccountKey=", r"://[^\s/]+:[^\s]+@", r"\.[\w-]{6}\.[\w-]{27}", r"ghp_", r"gho_",
        r"ghu_", r"ghs_", r"ghr_", r"github_pat_", r"glpat-", r"gldt-", r"glft-", r"glsoat-", r"glrt-", r"glcbt-",
        r"glimt-", r"glptt-", r"glagent-", r"gloas-", r"GR1348941", r"eyJ", r"-us\d", r":_authToken", r"T3BlbkFJ",
        r"sk-", r"pypi-Ag", r"SG\.", r"xox[abposr]-", r"XOX[ABPOSR]-", r"hooks\.slack", r"sq0csp", r"k_live_",
        r"k_test_", r":[\w-]{35}", r"AC[a-z0-9]{32}", r"SK[a-z0-9]{32}", r"AIza", r"hf_",
    )
)  # fmt: skip
_TELLING_NAMES = tuple(  # in lower case
    re.compile(form)
    for form in (
        r"passw", r"passphrase", r"pass[\"'\]]{0,2} ?[:=]", r"pwd", r"secret", r"contrase", r"token", r"credential",
        r"bearer",
        r"key\w*[\"'\])]{0,3}\s*(?::=|=>|={1,3}|!==?|[:(\s])\s*[\"'`@&\w]",
    )
)  # fmt: skip
_NAME = re.compile(
    r"pass|pwd|secret|contrase|token|credential|bearer"
    r"|(?:api|auth|service|account|db|database|priv|private|client|access|signing|encryption|license)[_-]?key"
    r"|(?:ibm|cos|iam|cloud|softlayer|sl|cl|cloudant|clou)[a-z_-]*key|key\W{1,6}[\w-]{44}"
)
_TELLING_STRING = re.compile(r"""(['"`])[A-Za-z0-9+/_=-]{20,}\1""")
_ASCII_LOWER = {n: n + 32 for n in range(ord("A"), ord("Z") + 1)}


def _in_lines(text: str) -> Iterator[_Found]:
    for start, end in _lines_to_search(text):
        line = text[start:end]
        for secret in [*_known(line), *_named(line), *_random(line)]:
            if not PLACEHOLDER.fullmatch(line, secret.start, secret.end):
                yield secret._replace(start=start + secret.start, end=start + secret.end)


def _lines_to_search(text: str) -> list[tuple[int, int]]:
    """The lines, or the parts of very long ones, in which something looks like a secret."""
    lower = text.lower()
    if len(lower) != len(text):  # a few letters become two
        lower = text.translate(_ASCII_LOWER)
    matches = chain.from_iterable(pattern.finditer(text) for pattern in (*_TELLING, _TELLING_STRING))
    names = chain.from_iterable(pattern.finditer(lower) for pattern in _TELLING_NAMES)
    named = (match for match in names if _NAME.search(lower, max(0, match.start() - 20), match.end() + 50))
    return sorted({_surroundings(text, match) for match in chain(matches, named)})


def _surroundings(text: str, match: re.Match[str]) -> tuple[int, int]:
    start = text.rfind("\n", 0, match.start()) + 1
    end = text.find("\n", match.end())
    end = len(text) if end < 0 else end
    if end - start <= _LONGEST_LINE:
        return start, end
    return max(start, match.start() - _BEFORE), min(end, match.end() + _AFTER)


def _known(line: str) -> Iterator[_Found]:
    """Secrets with a form of their own."""
    for detector in _detectors():
        for pattern in detector.patterns:
            for match in pattern.finditer(line):
                start, end = match.span(0 if detector.whole or not pattern.groups or match[1] is None else 1)
                value = line[start:end]
                if _may_be(detector.kind, value):
                    start += len(value) - len(value.lstrip(" \t=:\"'"))
                    end = start + len(value.strip(" \t=:\"'"))
                    # Forms say how long a secret is at least; the rest of the word belongs to it.
                    rest = _WORD.match(line, end)
                    end = rest.end() if rest else end
                    yield _Found(start, end, detector.kind, detector.placeholder)


_WORD = re.compile(r"(?:[\w-]|[.=+/](?=[\w-]))+")


def _may_be(kind: str, value: str) -> bool:
    """What a detector would refuse, or should: its pattern alone also finds ordinary words and templates."""
    if kind == "JSON Web Token":
        from detect_secrets.plugins.jwt import JwtTokenDetector

        return JwtTokenDetector.is_formally_valid(value)
    if kind == "Artifactory Credentials":
        return any(c.isdigit() for c in value) and any(c.islower() for c in value)
    if kind == "Basic Auth Credentials":
        return not _is_template(value) and value.lower() not in _WORDS
    return True


_NEWER = (
    ("GitHub Token", "GITHUB_TOKEN", r"\bgithub_pat_\w{36,255}"),
    ("OpenAI Token", "OPENAI_KEY", r"\bsk-(?:proj|svcacct|admin)-[\w-]{40,}"),
    ("Anthropic Key", "ANTHROPIC_KEY", r"\bsk-ant-[\w-]{20,}"),
    ("Google API Key", "GOOGLE_KEY", r"\bAIza[\w-]{35}"),
    ("Hugging Face Token", "HUGGING_FACE_TOKEN", r"\bhf_[A-Za-z0-9]{30,}"),
    ("Stripe Access Key", "STRIPE_KEY", r"\b[rs]k_test_[0-9a-zA-Z]{24,}"),
)


@lru_cache(maxsize=1)
def _detectors() -> tuple[_Detector, ...]:
    """Every detector of detect-secrets that has a form to go by, and the forms that came after its last version."""
    from detect_secrets.plugins.artifactory import ArtifactoryDetector
    from detect_secrets.plugins.aws import AWSKeyDetector
    from detect_secrets.plugins.azure_storage_key import AzureStorageKeyDetector
    from detect_secrets.plugins.base import RegexBasedDetector
    from detect_secrets.plugins.basic_auth import BasicAuthDetector
    from detect_secrets.plugins.cloudant import CloudantDetector
    from detect_secrets.plugins.discord import DiscordBotTokenDetector
    from detect_secrets.plugins.github_token import GitHubTokenDetector
    from detect_secrets.plugins.gitlab_token import GitLabTokenDetector
    from detect_secrets.plugins.ibm_cloud_iam import IbmCloudIamDetector
    from detect_secrets.plugins.ibm_cos_hmac import IbmCosHmacDetector
    from detect_secrets.plugins.jwt import JwtTokenDetector
    from detect_secrets.plugins.mailchimp import MailchimpDetector
    from detect_secrets.plugins.npm import NpmDetector
    from detect_secrets.plugins.openai import OpenAIDetector
    from detect_secrets.plugins.pypi_token import PypiTokenDetector
    from detect_secrets.plugins.sendgrid import SendGridDetector
    from detect_secrets.plugins.slack import SlackDetector
    from detect_secrets.plugins.softlayer import SoftlayerDetector
    from detect_secrets.plugins.square_oauth import SquareOAuthDetector
    from detect_secrets.plugins.stripe import StripeDetector
    from detect_secrets.plugins.telegram_token import TelegramBotTokenDetector
    from detect_secrets.plugins.twilio import TwilioKeyDetector

    known: tuple[tuple[RegexBasedDetector, str], ...] = (
        (ArtifactoryDetector(), "ARTIFACTORY_KEY"),
        (AWSKeyDetector(), "AWS_KEY"),
        (AzureStorageKeyDetector(), "AZURE_KEY"),
        (BasicAuthDetector(), "PASSWORD"),
        (CloudantDetector(), "CLOUDANT_KEY"),
        (DiscordBotTokenDetector(), "DISCORD_TOKEN"),
        (GitHubTokenDetector(), "GITHUB_TOKEN"),
        (GitLabTokenDetector(), "GITLAB_TOKEN"),
        (IbmCloudIamDetector(), "IBM_KEY"),
        (IbmCosHmacDetector(), "IBM_KEY"),
        (JwtTokenDetector(), "JSON_WEB_TOKEN"),
        (MailchimpDetector(), "MAILCHIMP_KEY"),
        (NpmDetector(), "NPM_TOKEN"),
        (OpenAIDetector(), "OPENAI_KEY"),
        (PypiTokenDetector(), "PYPI_TOKEN"),
        (SendGridDetector(), "SENDGRID_KEY"),
        (SlackDetector(), "SLACK_TOKEN"),
        (SoftlayerDetector(), "SOFTLAYER_KEY"),
        (SquareOAuthDetector(), "SQUARE_KEY"),
        (StripeDetector(), "STRIPE_KEY"),
        (TelegramBotTokenDetector(), "TELEGRAM_TOKEN"),
        (TwilioKeyDetector(), "TWILIO_KEY"),
    )
    prefixed = {"GitHub Token", "GitLab Token"}  # their groups are the prefix
    theirs = [
        _Detector(plugin.secret_type, f"REDACTED_{name}", tuple(plugin.denylist), plugin.secret_type in prefixed)
        for plugin, name in known
    ]
    ours = [_Detector(kind, f"REDACTED_{name}", (re.compile(form),), True) for kind, name, form in _NEWER]
    return (*theirs, *ours)


# ---- by the name it is given ----

# These names are also given to much that is no secret, and their values have to look random.
_LOOSE = r"token(?!i[sz])|credentials?|passphrase|bearer|(?:access|signing|encryption|license)_?key"
# What stands between a name and its value: brackets and quotes, a type, an assignment or a comparison, a call.
_TO_VALUE = (
    r"\w*['\"\])]{0,3}\s*(?::?\s*[&\w][&'\w\[\]<>|.,? ]{0,40})?(?P<sign>:=|=>|={1,3}|!==?|[:(\s])\s*"
    r"(?P<call>[\w.]+\()?[bruf@]{0,2}(?P<quote>['\"`])(?P<value>[^'\"`\s]{4,})(?P=quote)"
)
# A bare value without quotes counts only where nothing else is on its line, as in a settings file.
_BARE = re.compile(
    r"(?i)^[\s#/*>+-]*(?:export\s+|set\s+|-e\s+)?[\w.-]*"
    r"(?:passw(?:or)?d|passphrase|pwd|secret|token|api_?key|access_?key|private_?key)[\w.-]*"
    r"\s*[:=]\s*(?P<value>[^\s'\"`(){}\[\]<>,;$]{8,})\s*$"
)
_ENVIRONMENT = re.compile(
    r"^[\s#+-]*(?:export\s+|set\s+)?[A-Z0-9_]*(?:PASS|PASSWORD|PASSWD|PWD|SECRET|TOKEN|KEY)[A-Z0-9_]*"
    r"=(?P<value>[^\s'\"`(){}\[\]<>,;$]{6,})\s*$"
)
_FIELD = re.compile(r"passw|passphrase|pwd|secret|token|credential|key")  # in the value: it names another field
_WORDS = {
    "bytes", "changeme", "default", "example", "false", "hidden", "integer", "none", "null", "number", "object",
    "optional", "pass", "passwd", "password", "private", "public", "pwd", "required", "secret", "string", "text",
    "token", "true", "type", "unicode", "undefined", "user", "username",
}  # fmt: skip


@lru_cache(maxsize=1)
def _assignments() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """To the names that detect-secrets knows, in more forms than it knows, and to the names above."""
    from detect_secrets.plugins.keyword import DENYLIST

    names = "|".join(DENYLIST)
    return re.compile(rf"(?i)(?:{names}){_TO_VALUE}"), re.compile(rf"(?i)(?:{_LOOSE}){_TO_VALUE}")


def _named(line: str) -> Iterator[_Found]:
    from detect_secrets.plugins.keyword import QUOTES_REQUIRED_DENYLIST_REGEX_TO_GROUP

    for pattern, group in QUOTES_REQUIRED_DENYLIST_REGEX_TO_GROUP.items():
        for match in pattern.finditer(line):
            if _is_password(match[group]):
                yield _Found(*match.span(group), "Secret Keyword", "REDACTED_PASSWORD")
    strict, loose = _assignments()
    for match in strict.finditer(line):
        plain = match["sign"] not in ("(", " ", "\t") and not match["call"]
        if _is_password(match["value"]) and (plain or _mixed(match["value"])):
            yield _Found(*match.span("value"), "Secret Keyword", "REDACTED_PASSWORD")
    for match in loose.finditer(line):
        if len(match["value"]) >= 16 and _looks_random(match["value"]):
            yield _Found(*match.span("value"), "Secret Keyword", "REDACTED_SECRET")
    bare = _BARE.match(line)
    if bare and _is_password(bare["value"]) and _mixed(bare["value"]) and not bare["value"][0].isupper():
        yield _Found(*bare.span("value"), "Secret Keyword", "REDACTED_PASSWORD")
    setting = _ENVIRONMENT.match(line)
    if setting and _is_password(setting["value"]) and not setting["value"].isupper():
        yield _Found(*setting.span("value"), "Secret Keyword", "REDACTED_PASSWORD")


def _is_password(value: str) -> bool:
    """Not a template, a path, a message, or the name of a field."""
    if len(value) < 4 or re.search(r"\s", value) or value.lower() in _WORDS or not re.search(r"[A-Za-z0-9]", value):
        return False
    if re.fullmatch(r"(?i)utf-?\d+\w*|latin-?1|ascii|base64", value):
        return False
    if _is_template(value) or re.fullmatch(r"[./~\\][\w./~\\-]*|\w+://.*|[\w./-]+\.(?:pem|key|crt|json|txt|py)", value):
        return False
    return not (re.fullmatch(r"[A-Za-z_.:-]+", value) and _FIELD.search(value.lower()))


_TEMPLATE = re.compile(
    r"\{[^{}]*\}|^\{[A-Za-z_][\w.]*\[$|<[\w -]+>|\$\{|\$\(|^\$\w+$|^%\w+%$|%[sdr](?!\w)|%\(\w+\)|\*{3}|\.{3}|^[xX]+$"
)


def _is_template(value: str) -> bool:
    """Shaped like {this}, <this>, ${THIS}, %(this)s or ***, in parts or as a whole."""
    return bool(_TEMPLATE.search(value))


# ---- by how random it looks ----


def _random(line: str) -> Iterator[_Found]:
    """Quoted strings that are random by detect-secrets' own measure, where it is a key's: see `_looks_random`."""
    for match in _TELLING_STRING.finditer(line):
        value = match[0][1:-1]
        if _looks_random(value) and len(value) >= 32 and not _TELLS_A_DIGEST.search(line):
            yield _Found(match.start() + 1, match.end() - 1, "High Entropy String", "REDACTED_SECRET")


_TELLS_A_DIGEST = re.compile(
    r"(?i)sha\d|md5|digest|hash|checksum|integrity|blake|crc|uuid|guid|commit|revision|alphabet"
)


def _mixed(value: str) -> bool:
    return bool(re.search(r"\d", value) and re.search(r"[A-Za-z]", value))


def _looks_random(value: str) -> bool:
    """Letters and digits mixed, and about as many bits per character as chance gives: above 3 for hexadecimal, as
    detect-secrets has it; for others above its 4.5, or what is near the most that so short a value can have."""
    if not _mixed(value) or _is_template(value):
        return False
    if _SEQUENCE.search(value) or re.fullmatch(r"\d+[eE]\d+", value):  # an alphabet, a number
        return False
    if re.fullmatch(r"[0-9a-fA-F]+", value):
        return entropy(value) > 3.0
    if all(re.fullmatch(r"[A-Za-z]*\d{0,4}", part) for part in re.split(r"[_/.-]", value)):  # a path, a name
        return False
    return entropy(value) > min(4.5, 0.82 * math.log2(len(value)))


_SEQUENCE = re.compile(r"(?i)abcdefgh|12345678|qrstuvwx|YWJjZGVm|a-z|0-9")


def entropy(value: str) -> float:
    """Shannon's, in bits per character."""
    return -sum(n / len(value) * math.log2(n / len(value)) for n in Counter(value).values()) if value else 0.0
