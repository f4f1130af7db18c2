"""`ctseg api`: exported networks behind a small web API that needs no PyTorch."""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
from pathlib import Path
from typing import Any

from ctseg.errors import ConfigError
from ctseg.loopback import is_loopback
from ctseg.serving.users import read_token

_EXAMPLES = """examples:
  ctseg export liver_ct_segmentation --output exported     where PyTorch is
  ctseg api --models exported                              here, with or without PyTorch: http://127.0.0.1:8010/
  curl -F file=@ct.nii.gz -F 'models=["liver"]' -o mask.nii.gz http://127.0.0.1:8010/predict/

Research use only: not a medical device, not for diagnosis."""


def add_command(commands: Any) -> None:
    """Add `api` to the command line's commands."""
    parser = commands.add_parser(
        "api",
        help="serve exported networks over HTTP, without PyTorch",
        description="Serve exported networks over HTTP: an image in, a mask out.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--models", type=Path, required=True, metavar="FOLDER", help="what ctseg export --output wrote, or your own"
    )
    parser.add_argument("--runtime", choices=("onnx", "openvino"), default="onnx", help="(default: onnx)")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: 127.0.0.1, this computer only)")
    parser.add_argument("--port", type=int, default=8010, help="(default: 8010)")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="file with the token that callers must show")
    parser.add_argument(
        "--threads", type=int, metavar="N", help="of the processor for one image (default: as many as there are cores)"
    )
    parser.add_argument(
        "--max-upload", type=int, default=1024, metavar="MIB", help="the largest request in MiB (default: 1024)"
    )
    parser.set_defaults(run=_serve)


def _serve(arguments: argparse.Namespace) -> None:
    for package, name in (("fastapi", "fastapi"), ("uvicorn", "uvicorn"), ("python_multipart", "python-multipart")):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"ctseg api needs the package {name}, which is not installed: run scripts/setup light")
    if arguments.max_upload < 1 or not 0 < arguments.port < 65536:
        raise ConfigError(
            f"--max-upload {arguments.max_upload} and --port {arguments.port} cannot work: expected at least 1 MiB and "
            "a port from 1 to 65535"
        )
    token = None if arguments.token_file is None else read_token(arguments.token_file)
    if token is None and not is_loopback(arguments.host):
        raise ConfigError(
            f"on {arguments.host} other computers can reach the service, so a token is needed: write a long random "
            "word into a file and name it with --token-file"
        )
    import uvicorn

    from ctseg.light.models import Models
    from ctseg.light.service import make_app
    from ctseg.light.sessions import check_runtime

    check_runtime(arguments.runtime)
    models = Models(arguments.models, arguments.runtime, arguments.threads)
    for entry in models.listed():
        said = f"cannot be used: {entry['problem']}" if entry["problem"] else ", ".join(entry["labels"])
        print(f"ctseg: {entry['name']} (sha256 {entry['sha256'][:12]}): {said}", file=sys.stderr, flush=True)
    app = make_app(models, arguments.max_upload, token)
    # uvicorn ends in order and raises the signal again: an ordinary end then takes the private folder away.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # No access log: a query could hold a name.
    uvicorn.run(app, host=arguments.host, port=arguments.port, log_level="warning", access_log=False, ws="none")
