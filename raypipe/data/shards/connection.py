"""Connections to remote storage with pyarrow.fs, which fail quickly where nobody answers, and say why in one line."""

from __future__ import annotations

from urllib.parse import urlsplit

from pyarrow import fs

from raypipe.common.errors import UserError, first_line

OPENING = 5.0
"""Seconds to open a connection; for a bucket on AWS, its region is asked for first."""
PATIENCE = 4.0
"""Seconds after which a storage that has not yet answered is not tried again."""
CONNECTING = 2.0
"""Seconds to connect to a server, each time."""
REFUSED = (
    "ACCESS_DENIED",
    "INVALID_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH",
    "INVALID_CLIENT_TOKEN_ID",
    "MISSING_AUTHENTICATION_TOKEN",
    "UNRECOGNIZED_CLIENT",
    "EXPIRED_TOKEN",
)
"""Names, in the messages of the AWS SDK, of errors that other credentials would mend."""


class MissingFolderError(UserError):
    """A remote folder does not exist."""


def connect(uri: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a URI, and the path in it.

    Raises UserError if the URI contains a secret, which would be written to logs and manifests, and OSError if nobody
    answers, after seconds for S3: by default, the AWS SDK tries for up to two minutes.
    """
    if urlsplit(uri).password is not None:
        shown = uri.partition("@")[2]
        raise UserError(f"{shown}: its URI contains a secret; give it by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    system, path = fs.FileSystem.from_uri(uri)
    if isinstance(system, fs.S3FileSystem):
        known = system.__reduce__()[1][0]  # a URI has no options for these, and a filesystem tells its own only so
        known.pop("proxy_options")
        retries = fs.AwsStandardS3RetryStrategy(max_attempts=2)
        # Written in the background, parts of a file queue up in memory as fast as they are read from a disk.
        more = {"connect_timeout": CONNECTING, "retry_strategy": retries, "background_writes": False}
        more["allow_delayed_open"] = True  # a small file is one request instead of three
        system = fs.S3FileSystem(**known | more)
    return system, path


def explain(uri: str, error: OSError) -> UserError | None:
    """The error to raise at once, for one that another attempt would not mend; None if it might."""
    text = first_line(error)
    if isinstance(error, FileNotFoundError):
        return MissingFolderError(f"{uri}: no such file, folder or bucket")
    if "NO_SUCH_BUCKET" in text:
        return UserError(f"{uri}: no such bucket; check the name, and the region or endpoint of your AWS config")
    if isinstance(error, PermissionError) or any(name in text for name in REFUSED):
        return UserError(f"{uri}: access denied ({text}); check the credentials")
    return None
