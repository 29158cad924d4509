"""moto's server, with what AWS publishes and moto lacks: the image's SSM parameter, and the caller's address."""

import datetime
import os
import sys
import threading
from pathlib import Path
from urllib.parse import urlparse

from moto.server import DomainDispatcherApplication, create_backend_app
from moto.ssm.models import Parameter, ssm_backends
from werkzeug.serving import make_server, make_ssl_devcert
from werkzeug.wrappers import Request, Response

from raypipe.distributed.aws import IMAGE, MY_ADDRESS

ACCOUNT = "123456789012"
IMAGE_ID = "ami-0123456789abcdef0"
PORT = 5000


def publish_image(region: str) -> None:
    ssm_backends[ACCOUNT][region]._parameters[IMAGE].append(
        Parameter(
            account_id=ACCOUNT,
            name=IMAGE,
            value=IMAGE_ID,
            parameter_type="String",
            description="",
            allowed_pattern=None,
            keyid=None,
            last_modified_date=datetime.datetime.now(),
            version=1,
            data_type="text",
            tier="Standard",
            policies=None,
        )
    )


@Request.application
def tell_address(request: Request) -> Response:
    return Response(f"{request.remote_addr}\n")


def main(address: str, folder: Path) -> None:
    """Serve the API on port 5000, and the caller's address by HTTPS on 443; its certificate is `folder/check.crt`."""
    os.environ["MOTO_IAM_LOAD_MANAGED_POLICIES"] = "true"
    publish_image("us-west-2")
    certificate = make_ssl_devcert(str(folder / "check"), host=urlparse(MY_ADDRESS).hostname)
    check = make_server(address, 443, tell_address, ssl_context=certificate)
    threading.Thread(target=check.serve_forever, daemon=True).start()
    api = DomainDispatcherApplication(create_backend_app)
    make_server(address, PORT, api, threaded=True).serve_forever()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
