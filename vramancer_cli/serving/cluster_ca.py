"""The cluster's certificate authority as the small verbs and their TLS need it: its certificate, which is no secret.

Read from what a node keeps of itself. Standard library only.
"""

from __future__ import annotations

import base64
import hashlib
import json
import ssl
from pathlib import Path
from typing import Final

from vramancer_cli.runtime import whole_file

CREDENTIALS_FILE: Final = "credentials.json"


def read_pem(folder: Path) -> str | None:
    """PEM text; None where the folder belongs to no cluster. Raises StateFolderError for a broken file."""
    path = folder / CREDENTIALS_FILE
    text = whole_file.read(path)
    try:
        return None if text is None else base64.b64decode(json.loads(text)["ca_pem"], validate=True).decode("ascii")
    except (ValueError, TypeError, KeyError) as error:
        raise whole_file.broken(path, f"{type(error).__name__}: {error}") from error


def fingerprint(pem: str) -> str:
    """SHA-256 of the certificate, as browsers and openssl show it."""
    digits = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest().upper()
    return ":".join(digits[place : place + 2] for place in range(0, len(digits), 2))


def client_context(pem: str | None) -> ssl.SSLContext:
    """For HTTPS: the cluster's authority where there is one, beside those that this system trusts."""
    context = ssl.create_default_context()
    if pem is not None:
        context.load_verify_locations(cadata=pem)
    return context
