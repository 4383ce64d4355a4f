"""A bucket on this machine, in place of Google's."""

import contextlib
import logging
import os

# What sends gcsfs, google-cloud-storage and TensorStore to the emulator, without
# credentials and without asking Google's servers what kind of bucket it is.
_ENVIRONMENT = {
    "STORAGE_EMULATOR_HOST": "http://localhost:{port}",
    "TENSORSTORE_GCS_HTTP_URL": "http://localhost:{port}",
    "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    "NO_GCE_CHECK": "true",
}


@contextlib.contextmanager
def emulated(name="bucket"):
    """Serves an empty bucket until the context ends."""
    from gcp_storage_emulator.server import create_server

    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    server = create_server("localhost", 0, in_memory=True, default_bucket=name)
    server.start()
    http = server._api._httpd
    # It would print a traceback for every connection that a client has closed.
    http.handle_error = lambda request, address: None
    port = http.server_address[1]
    environment = {key: x.format(port=port) for key, x in _ENVIRONMENT.items()}
    try:
        os.environ.update(environment)
        yield f"gs://{name}"
    finally:
        for key in environment:
            del os.environ[key]
        server.stop()
