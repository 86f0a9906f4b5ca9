"""Signing what `build_scripts.binary` made, where somebody has an identity for it. Nothing secret is in here.

Who signs is named by the environment; keys and passwords stay in the system's own key stores:

| variable | system | what it names |
|---|---|---|
| VRM_CODESIGN_IDENTITY | macOS | a "Developer ID Application" identity in the keychain; PyInstaller signs with it |
| VRM_NOTARY_PROFILE | macOS | a keychain profile made by `xcrun notarytool store-credentials` |
| VRM_SIGN_CERTIFICATE | Windows | the SHA-1 thumbprint of a certificate in the certificate store |
| VRM_SIGN_TIMESTAMP_URL | Windows | the RFC 3161 time stamp server that its issuer names |

Every function that signs returns whether somebody's identity is on the file now; without its variables it says so. The
steps follow the tools' manuals: we have not run them with a real identity.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from vramancer_cli.errors import VramancerError

CODESIGN_IDENTITY: Final = "VRM_CODESIGN_IDENTITY"
NOTARY_PROFILE: Final = "VRM_NOTARY_PROFILE"
SIGN_CERTIFICATE: Final = "VRM_SIGN_CERTIFICATE"
SIGN_TIMESTAMP_URL: Final = "VRM_SIGN_TIMESTAMP_URL"

ENTITLEMENTS: Final = Path(__file__).parent / "macos_entitlements.plist"
SIGN_DEADLINE_S: Final = 300.0
NOTARISE_DEADLINE_S: Final = 3600.0
"""Apple's service mostly answers within minutes; a first submission may be held much longer."""

_THUMBPRINT: Final = re.compile(r"[0-9A-Fa-f]{40}", re.ASCII)
_WORDS_SHOWN: Final = 2000


class SigningError(VramancerError):
    """The file could not be signed."""


def pyinstaller_identity(environment: Mapping[str, str]) -> str | None:
    """What a spec gives to `codesign_identity`: with one, PyInstaller signs every collected library and the program,
    with a time stamp and the hardened runtime. None: it signs ad hoc, which Apple silicon needs to run it at all.
    """
    identity = environment.get(CODESIGN_IDENTITY, "").strip()
    if not identity:
        _say(f"not signed with an identity ({CODESIGN_IDENTITY} is not set)")
    return identity or None


def entitlements(environment: Mapping[str, str]) -> str | None:
    """What a spec gives to `entitlements_file`. None without an identity: they loosen a hardened runtime only."""
    return str(ENTITLEMENTS) if environment.get(CODESIGN_IDENTITY, "").strip() else None


def sign_windows(path: Path, environment: Mapping[str, str]) -> bool:
    """Authenticode by `signtool`, with a time stamp, so that the signature outlives its certificate; then verified.

    To be called when the file is complete: what is appended afterwards breaks the signature. Raises SigningError.
    """
    thumbprint = environment.get(SIGN_CERTIFICATE, "").replace(" ", "")
    if not thumbprint:
        _say(f"{path.name} is not signed ({SIGN_CERTIFICATE} is not set)")
        return False
    if not _THUMBPRINT.fullmatch(thumbprint):
        raise SigningError(f"{SIGN_CERTIFICATE} is not a certificate's SHA-1 thumbprint.", hint="It has 40 hex digits.")
    time_server = environment.get(SIGN_TIMESTAMP_URL, "").strip()
    if not time_server.startswith(("http://", "https://")):
        raise SigningError(f"{SIGN_TIMESTAMP_URL} is not a URL.", hint="The issuer of the certificate names one.")
    with_time = ["/fd", "SHA256", "/tr", time_server, "/td", "SHA256"]
    _run(["signtool", "sign", "/sha1", thumbprint, *with_time, str(path)], environment, SIGN_DEADLINE_S)
    _run(["signtool", "verify", "/pa", str(path)], environment, SIGN_DEADLINE_S)
    _say(f"{path.name} is signed")
    return True


def notarise(path: Path, environment: Mapping[str, str]) -> bool:
    """Sends the signed file to Apple's notary service and waits for its word. Raises SigningError.

    The service takes archives, not bare programs, so the file travels in a zip. Nor can its ticket be stapled to a
    bare program: a Mac asks Apple for it when the file is first opened, and needs the internet then.
    """
    profile = environment.get(NOTARY_PROFILE, "").strip()
    if not profile:
        _say(f"{path.name} is not notarised ({NOTARY_PROFILE} is not set)")
        return False
    if not environment.get(CODESIGN_IDENTITY, "").strip():
        raise SigningError(f"Only a signed file can be notarised, and {CODESIGN_IDENTITY} is not set.")
    with tempfile.TemporaryDirectory(prefix="vramancer-notary-") as folder:
        parcel = Path(folder) / f"{path.name}.zip"
        _run(["ditto", "-c", "-k", "--keepParent", str(path), str(parcel)], environment, SIGN_DEADLINE_S)
        submit = ["xcrun", "notarytool", "submit", str(parcel), "--keychain-profile", profile, "--wait"]
        told = _run(submit, environment, NOTARISE_DEADLINE_S)
    # A refused file is an answer like any other to some versions of the tool, which then end with 0.
    if not re.search(r"status:\s*Accepted", told):
        raise SigningError(f"Apple's notary service did not accept {path.name}:\n{told[-_WORDS_SHOWN:]}")
    _say(f"{path.name} is notarised")
    return True


def _run(command: Sequence[str], environment: Mapping[str, str], deadline_s: float) -> str:
    """Both of its outputs. Raises SigningError: it is not there, fails, or does not end."""
    tool = shutil.which(command[0], path=environment.get("PATH"))
    if tool is None:
        raise SigningError(f"{command[0]} is not installed, or not on PATH.", hint="See docs/install.md.")
    try:
        ran = subprocess.run(
            [tool, *command[1:]],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=deadline_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise SigningError(f"{command[0]} did not end within {deadline_s:.0f} s.") from error
    told = ran.stdout.decode(errors="replace")
    if ran.returncode != 0:
        raise SigningError(f"{command[0]} failed with exit code {ran.returncode}:\n{told[-_WORDS_SHOWN:]}")
    return told


def _say(line: str) -> None:
    print(f"signing: {line}")
