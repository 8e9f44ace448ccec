"""Secrets are put together here from pieces, at random, so that no scanner finds one in this file."""

from __future__ import annotations

import ast
import base64
import importlib
import pkgutil
import random
import re
import string
import sysconfig
from collections.abc import Callable
from pathlib import Path

import detect_secrets.plugins
import pytest
from detect_secrets.plugins.base import RegexBasedDetector

from pipeline.codebase.secrets import PLACEHOLDER, redact

LETTERS, DIGITS = string.ascii_letters, string.digits
UPPER, LOWER = string.ascii_uppercase + DIGITS, string.ascii_lowercase + DIGITS
HEX = "0123456789abcdef"


def letters(n: int, alphabet: str = LETTERS + DIGITS, seed: int = 0) -> str:
    """n characters, among them a digit and a letter."""
    draw = random.Random(seed)
    return "".join([draw.choice(DIGITS), draw.choice(sorted(set(alphabet) - set(DIGITS)) or DIGITS)]) + "".join(
        draw.choice(alphabet) for _ in range(n - 2)
    )


def part(value: str) -> str:
    return base64.urlsafe_b64encode(value.encode()).decode().rstrip("=")


def armour(what: str, lines: int = 5, seed: int = 0) -> str:
    body = "\n".join(letters(64, LETTERS + DIGITS + "+/", seed + n) for n in range(lines))
    return f"-----BEGIN {what}-----\n{body}\n-----END {what}-----"


# detector -> what it must find; the whole of it is secret
FORMS: dict[str, Callable[[int], str]] = {
    "AWS Access Key": lambda n: "AK" + "IA" + letters(16, UPPER, n),
    "Azure Storage Account access key": lambda n: letters(86, seed=n) + "==",
    "Discord Bot Token": lambda n: "M" + letters(23, seed=n) + "." + letters(6, seed=n) + "." + letters(27, seed=n),
    "GitHub Token": lambda n: ("gh" + "p_", "github" + "_pat_")[n % 2] + letters(36 + n % 2 * 46, seed=n),
    "GitLab Token": lambda n: "gl" + "pat-" + letters(20, seed=n),
    "JSON Web Token": lambda n: ".".join((part('{"alg":"HS256"}'), part(f'{{"sub":"{n}"}}'), letters(43, seed=n))),
    "Mailchimp Access Key": lambda n: letters(32, HEX, n) + "-us" + "12",
    "OpenAI Token": lambda n: "sk" + "-" + letters(20, seed=n) + "T3Blb" + "kFJ" + letters(20, seed=n + 1),
    "PyPI Token": lambda n: "pypi" + "-AgEIcHlwaS5vcmc" + letters(70, seed=n),
    "SendGrid API Key": lambda n: "SG" + "." + letters(22, seed=n) + "." + letters(43, seed=n),
    "Slack Token": lambda n: "xo" + "xb-" + letters(12, DIGITS, n) + "-" + letters(24, LOWER, n),
    "Square OAuth Secret": lambda n: "sq0" + "csp-" + letters(43, seed=n),
    "Stripe Access Key": lambda n: "sk" + ("_live_", "_test_")[n % 2] + letters(24, seed=n),
    "Telegram Bot Token": lambda n: letters(9, DIGITS, n) + ":" + letters(35, seed=n),
    "Twilio API Key": lambda n: "S" + "K" + letters(32, LOWER, n),
    "Anthropic Key": lambda n: "sk" + "-ant-" + letters(60, seed=n),
    "Google API Key": lambda n: "AI" + "za" + letters(35, seed=n),
    "Hugging Face Token": lambda n: "h" + "f_" + letters(34, seed=n),
    "High Entropy String": lambda n: letters(40, (HEX, LETTERS + DIGITS)[n % 2], n),
}
# How a text may hold one: all of it Python, or a comment in it.
HOLDERS = (
    'client = Client("{}")\n',
    "value = ['a', '{}', 'b']\n",
    'def f(x="{}"):\n    """Says."""\n    return x\n',
    "text = '''\nfirst\n\"{}\"\nlast'''\n",
    '# the old one was "{}" until May\nx = 1\n',
)


def context(detector: str, secret: str) -> str:
    return f"AccountKey={secret}" if detector.startswith("Azure") else secret


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("detector", FORMS)
def test_a_secret_goes_and_nothing_else_does(detector: str, holder: str) -> None:
    for seed in range(6):
        secret = FORMS[detector](seed)
        text = "import os\n\n" + holder.format(context(detector, secret)) + "\nprint(os.name)\n"
        clean, counts = redact(text)
        before, after = text.split(context(detector, secret))
        assert clean.startswith(before)
        assert clean.endswith(after)
        assert PLACEHOLDER.fullmatch(clean[len(before) : -len(after)])
        assert counts == {detector: 1}
        ast.parse(clean)
        assert redact(clean) == (clean, {})


def named(name: str, value: str) -> list[str]:
    return [
        f'{name} = "{value}"', f"{name}='{value}'", f'{{"{name}": "{value}"}}', f'connect({name}="{value}")',
        f'if {name} == "{value}": pass', f'settings["{name}"] = "{value}"', f'String {name} = "{value}";',
        f'const {name}: string = "{value}"', f'export {name.upper()}={value}', f"{name.upper()}={value}",
        f"{name}: {value}", f"+{name.upper()}={value}", f'{name}: str = "{value}"', f"{name} = b'{value}'",
        f'let {name}: &\'static str = "{value}";', f'var {name} string = "{value}"', f'{name} := "{value}"',
        f'{name} = SecretStr("{value}")', f'self.set_{name}("{value}")', f'{name.upper()} = r"{value}"',
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["password", "db_password", "api_key", "client_secret", "passwd", "access_token"])
def test_a_value_whose_name_tells_goes(name: str) -> None:
    for seed in range(4):
        value = letters(20, LETTERS + DIGITS + "!#%&*+-./=?@^_~", seed)
        value = "q" + value[:-1] + "Z"
        for line in named(name, value):
            clean, counts = redact(f"a = 1\n{line}\nb = 2\n")
            assert value not in clean, line
            assert sum(counts.values()) == 1, (line, counts)
            assert redact(clean) == (clean, {})


@pytest.mark.parametrize(
    "value", ["hunter" + "2", "sword" + "fish", "correct-horse-" + "battery-staple", "S3" + "cr!t"]
)
def test_a_plain_password_goes(value: str) -> None:
    for line in (f'password = "{value}"', f'PGPASSWORD = "{value}"', f'{{"db_password": "{value}"}}'):
        clean, counts = redact(line)
        assert value not in clean
        assert counts == {"Secret Keyword": 1}
        ast.parse(clean)


def test_a_password_in_an_address_goes() -> None:
    value = "hunter" + "2"
    clean, counts = redact(f'url = "postgres://admin:{value}@db.internal:5432/main"\n')
    assert clean == 'url = "postgres://admin:REDACTED_PASSWORD@db.internal:5432/main"\n'
    assert counts == {"Basic Auth Credentials": 1}


# ---- blocks ----

KINDS = ("RSA PRIVATE KEY", "PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "EC PRIVATE KEY", "OPENSSH PRIVATE KEY",
         "PGP PRIVATE KEY BLOCK", "CERTIFICATE")  # fmt: skip


def quoted(block: str) -> str:
    return "key = (\n" + "\n".join(f'    "{line}\\n"' for line in block.split("\n")) + "\n)\n"


BLOCK_HOLDERS: tuple[Callable[[str], str], ...] = (
    lambda block: f'key = """{block}\n"""\n',
    lambda block: f'key = b"""\n{block}"""\n',
    quoted,
    lambda block: "key = '" + block.replace("\n", "\\n") + "'\n",
    lambda block: "".join(f"# {line}\n" for line in block.split("\n")),
    lambda block: "def f():\n    return '''\n" + "".join(f"    {line}\n" for line in block.split("\n")) + "    '''\n",
)


@pytest.mark.parametrize("hold", BLOCK_HOLDERS)
@pytest.mark.parametrize("what", KINDS)
def test_a_block_goes_from_begin_to_end(what: str, hold: Callable[[str], str]) -> None:
    block = armour(what)
    clean, counts = redact("x = 1\n" + hold(block) + "y = 2\n")
    assert not [line for line in block.split("\n") if line in clean]
    assert clean.startswith("x = 1\n")
    assert clean.endswith("y = 2\n")
    assert list(counts.values()) == [1]
    ast.parse(clean)
    assert redact(clean) == (clean, {})


def test_a_block_whose_end_is_missing_goes() -> None:
    block = armour("RSA PRIVATE KEY").rpartition("\n")[0]
    clean, _ = redact(f'key = """{block}')
    assert not [line for line in block.split("\n") if line in clean]


def test_a_putty_key_goes() -> None:
    lines = [letters(64, LETTERS + DIGITS, seed) for seed in range(4)]
    key = "PuTTY-User-Key" + "-File-2: ssh-rsa\nEncryption: none\nPrivate-Lines: 4\n" + "\n".join(lines)
    clean, counts = redact(f"before\n{key}\nPrivate-MAC: {letters(40, HEX)}\nafter\n")
    assert clean == "before\nREDACTED_PRIVATE_KEY\nafter\n"
    assert counts == {"Private Key": 1}


def test_a_program_that_looks_for_a_key_is_left_alone() -> None:
    text = 'BEGIN = "-----BEGIN ' + 'PRIVATE KEY-----"\nEND = "-----END ' + 'PRIVATE KEY-----"\nfound = BEGIN in text\n'
    assert redact(text) == (text, {})


# ---- the whole of a text ----


def test_what_is_found_once_goes_wherever_it_stands() -> None:
    value = "Tr0ub" + "4dor&3x"
    clean, counts = redact(f'password = "{value}"\nlogin("me", "{value}")\n# not {value} any more\n')
    assert value not in clean
    assert counts == {"Secret Keyword": 3}


def test_several_in_one_line_and_in_a_very_long_one() -> None:
    first, second = FORMS["AWS Access Key"](1), FORMS["GitHub Token"](2)
    for filler in ("", "x" * 50_000):
        clean, counts = redact(f'a = ["{filler}", "{first}", "{second}", "{filler}"]\n')
        assert first not in clean
        assert second not in clean
        assert counts == {"AWS Access Key": 1, "GitHub Token": 1}


def test_letters_that_change_their_number_in_lower_case_move_nothing() -> None:
    value = "Tr0ub" + "4dor&3x"
    assert value not in redact("İ" * 40 + f'\nPASSWORD = "{value}"\n')[0]


ORDINARY = (
    'password = getpass("Password: ")', 'password: str = ""', 'user.password == other.password', 'token = "%s"',
    'fields = {"password": "password", "token": "access_token"}', 'secret = os.environ["CLIENT_SECRET"]',
    'parser.add_argument("--password", help="the password to use")', 'key = "name"', 'path = "/etc/ssl/private.key"',
    'url = "https://example.org/a/b?c=d"', 'url = f"https://{user}:{password}@{host}"', 'api_key = config.api_key',
    'id = "123e4567-e89b-12d3-a456-426614174000"', 'sha256 = "' + letters(64, HEX) + '"', "d = {'key': value}",
    'tokens = ["<unk>", "<pad>"]', 'ALPHABET = "' + string.ascii_letters + DIGITS + '"', "token: Uint8Array",
    'password = f"{SETTINGS["one"]}"', 'password = f"my-{self.get("it")}"',
    'password = "{SECRETS["password"]}"',
    'password="<your password>"', 'password="${DB_PASSWORD}"', 'name = "this-is-a-very-long-name-of-a-thing-1"',
)  # fmt: skip


@pytest.mark.parametrize("line", ORDINARY)
def test_ordinary_code_is_left_alone(line: str) -> None:
    assert redact(line + "\n") == (line + "\n", {})


def test_almost_nothing_of_a_real_library_is_touched_and_all_of_it_still_parses() -> None:
    import networkx

    folders = [Path(networkx.__file__).parent / "algorithms", Path(sysconfig.get_paths()["stdlib"]) / "asyncio"]
    texts = [path.read_text(encoding="utf-8") for folder in folders for path in folder.rglob("*.py")]
    assert sum(map(len, texts)) > 4_000_000
    touched = 0
    for text in texts:
        clean, counts = redact(text)
        touched += sum(counts.values())
        if counts:
            ast.parse(clean)
            assert redact(clean) == (clean, {})
        else:
            assert clean == text
    assert touched < 20


def test_detect_secrets_finds_nothing_in_what_is_left() -> None:
    """Its own code over the result, for every detector that goes by a form."""
    names = [f"detect_secrets.plugins.{found.name}" for found in pkgutil.iter_modules(detect_secrets.plugins.__path__)]
    kinds = {
        kind
        for module in map(importlib.import_module, names)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, RegexBasedDetector) and kind is not RegexBasedDetector
    }
    plugins = [kind() for kind in kinds if kind.__name__ != "IPPublicDetector"]  # an address is no secret
    assert len(plugins) > 20
    secrets = [context(name, form(seed)) for name, form in FORMS.items() for seed in range(10)]
    secrets += ["AK" + "C" + letters(20, seed=1) + " ", "softlayer_key = " + letters(64, LOWER), "iam: " + letters(3)]
    secrets += ["cl_key: " + letters(64, HEX), "cos_secret_access_key = " + letters(48, HEX)]
    secrets += ["api_key=" + letters(44, LOWER), "//registry/:_auth" + "Token=npm_" + letters(36), *map(armour, KINDS)]
    secrets += ["aws_secret_access_key = '" + letters(40) + "'", "https://hooks.slack" + ".com/services/T1/B2/" + "x3"]
    text = "\n".join(secrets)
    found = {plugin.secret_type for plugin in plugins for line in text.split("\n") for _ in plugin.analyze_string(line)}
    assert len(found) > 18
    clean, _ = redact(text)
    for plugin in plugins:
        for line in clean.split("\n"):
            left = [value for value in plugin.analyze_string(line) if not re.search("REDACTED_", value)]
            assert not left, (plugin.secret_type, line)
