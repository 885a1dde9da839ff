"""An S3 storage on this machine, which tests of libraries in object storage use."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def s3_server(patch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run a server with an empty bucket, let the environment lead to it, and yield the bucket's address."""
    pytest.importorskip("s3fs", reason="needs s3fs: pip install 'sidelight[s3]'")
    moto = pytest.importorskip("moto.server", reason="needs moto: pip install 'sidelight[dev]'")
    import s3fs

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        patch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        s3fs.S3FileSystem().mkdir("bucket")
        yield "s3://bucket"
    finally:
        server.stop()
        s3fs.S3FileSystem.clear_instance_cache()
