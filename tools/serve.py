#!/usr/bin/env python
"""Serve an exported model over HTTP: POST an image to /predict for its objects as JSON."""

import argparse
import asyncio
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone's package, whichever is installed

from pvt_mm.apis.command_line import Parser, starting
from pvt_mm.utils.errors import InputError, command, import_errors

SECONDS = 30  # for a client to send an image, and for requests to be answered after SIGTERM


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        description=__doc__ + ' GET /health answers while the service is up.',
        epilog='Example: tools/serve.py model.onnx --port 8000; curl --data-binary @image.jpg localhost:8000/predict',
    )
    parser.add_argument('model', metavar='MODEL.onnx', help='a file of tools/export_onnx.py')
    parser.add_argument('--host', default='127.0.0.1', help='address; 0.0.0.0 for all (default: %(default)s)')
    parser.add_argument('--port', type=int, default=8000, help='0 for a free one (default: %(default)s)')
    parser.add_argument('--score-thr', type=float, default=0.3, help='minimum score (default: %(default)s)')
    parser.add_argument('--threads', type=int, default=0, help='threads of one prediction (default: one per core)')
    parser.add_argument('--workers', type=int, default=1, help='predictions at a time (default: %(default)s)')
    parser.add_argument('--queue', type=int, default=32, help='more requests that may wait (default: %(default)s)')
    parser.add_argument('--max-mb', type=float, default=20, help='largest body (default: %(default)s)')
    parser.add_argument('--max-mpixels', type=float, default=25, help='most million pixels (default: %(default)s)')
    return parser.parse_args(argv)


with starting(__name__, parse_args):
    from PIL import Image

    from pvt_mm.serving.model import OnnxModel
    from pvt_mm.serving.uploads import RefusedError, drain, open_image, read_body


def build_app(model: Callable[[BinaryIO], Any], args: argparse.Namespace) -> Any:
    """Returns the application, with the limits of :func:`parse_args`; ``model`` is an ``OnnxModel``."""
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse
    from starlette.requests import ClientDisconnect

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    pool = ThreadPoolExecutor(args.workers)
    admitted, running = asyncio.Semaphore(args.workers + args.queue), asyncio.Semaphore(args.workers)

    def compute(body: bytes) -> Any:
        return model(open_image(body, args.max_mpixels))

    @app.get('/health')
    async def health() -> dict[str, str]:
        return {'status': 'ok'}

    @app.post('/predict')
    async def predict(request: Request) -> JSONResponse:
        if admitted.locked():
            await asyncio.wait_for(drain(request.stream()), SECONDS)
            raise RefusedError(503, 'too many requests are waiting: try again', **{'Retry-After': '1'})
        async with admitted:
            body = await asyncio.wait_for(read_body(request.stream(), args.max_mb), SECONDS)
            async with running:
                if await request.is_disconnected():
                    raise ClientDisconnect
                result = await asyncio.get_running_loop().run_in_executor(pool, compute, body)
                return JSONResponse({'objects': result.objects})

    def refuse(error: Exception, status: int, reason: str) -> JSONResponse:
        return JSONResponse({'detail': reason}, getattr(error, 'status', status), getattr(error, 'headers', None))

    slow, failed = f'the body did not arrive within {SECONDS} s', 'the prediction failed: see the log of the service'
    app.add_exception_handler(InputError, lambda _, error: refuse(error, 422, str(error)))  # truncated, or too thin
    app.add_exception_handler(asyncio.TimeoutError, lambda _, error: refuse(error, 408, slow))
    app.add_exception_handler(ClientDisconnect, lambda _, error: refuse(error, 499, 'which nobody reads'))
    app.add_exception_handler(Exception, lambda _, error: refuse(error, 500, failed))
    return app


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens, or raises an InputError."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ':' in host else socket.AF_INET)
    except OSError as error:
        raise InputError(f'{error.strerror}: choose another --port, 0 for a free one, or --host') from None


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.workers < 1 or min(args.threads, args.queue, args.max_mb, args.max_mpixels) < 0:
        raise InputError('--workers must be 1 or more, and the other numbers 0 or more')
    if not 0 <= args.score_thr <= 1:
        raise InputError(f'--score-thr {args.score_thr}: it must be from 0 to 1')
    if not 0 <= args.port <= 65535:
        raise InputError(f'--port {args.port}: it must be from 1 to 65535, or 0 for a free one')
    Image.MAX_IMAGE_PIXELS = None  # --max-mpixels is the limit
    listener = listen(args.host, args.port)
    model = OnnxModel(args.model, args.score_thr, args.threads)
    with import_errors('serving a model', 'pvt_mm[serve]'):
        import uvicorn

        app = build_app(model, args)
    config = uvicorn.Config(app, host=args.host, port=args.port, timeout_graceful_shutdown=SECONDS)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # uvicorn raises it again after its shutdown
    host = f'[{args.host}]' if ':' in args.host else args.host
    print(f'running on http://{host}:{listener.getsockname()[1]}', flush=True)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == '__main__':
    sys.exit(main())
