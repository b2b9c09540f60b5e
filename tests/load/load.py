"""Loads the service of an exported model with concurrent clients, and checks answers and memory.

``make test-load MODEL=model.onnx IMAGES=folder`` runs it. First 200 clients at once send good, empty, truncated, huge
and other wrong images, each of which is answered with its status. Then come 2,000 images of up to 12 megapixels, one in
20 of them wrong. After the first 500 resident memory must not grow by more than 5 %, from the least reading of 250
requests to that of the last 250, as what runs at that moment adds to a reading. SIGTERM must end it with exit code 0.
"""

import contextlib
import http.client
import io
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import quantiles
from typing import NamedTuple

from PIL import Image

from pvt_mm.apis.command_line import Parser
from pvt_mm.utils.errors import InputError, command

ROOT = Path(__file__).resolve().parents[2]
EVERY = 10  # requests between two readings of the memory
SETTLED, COMPARED = 500, 250  # requests before the first readings that count, and those whose least reading does
LEAST = SETTLED + 2 * COMPARED
ALLOWED = 0.05  # gain of resident memory after SETTLED requests, as a share
MAX_MPIXELS = 25
LARGE = (4000, 3000)


class Answer(NamedTuple):
    """Status, JSON and headers of a response, and the seconds until it came."""

    status: int
    content: dict
    headers: http.client.HTTPMessage
    seconds: float


class Service:
    """A running tools/serve.py."""

    def __init__(self, process: subprocess.Popen, log: Path, port: int):
        self.process, self.log, self.port = process, log, port

    def ask(self, body: bytes | None, method: str = 'POST', path: str = '/predict', **headers: str) -> Answer:
        """Sends a request on a connection of its own; raises if there is no answer, or none in JSON."""
        start = time.perf_counter()
        connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=120)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            content = json.loads(response.read())
        return Answer(response.status, content, response.headers, time.perf_counter() - start)

    def memory(self) -> float:
        """Returns resident memory in MB."""
        status = Path(f'/proc/{self.process.pid}/status').read_text()
        return int(re.search(r'VmRSS:\s+(\d+)', status)[1]) / 1024

    def stop(self) -> int:
        """Returns the exit code after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextlib.contextmanager
def serving(model: Path, *options: str) -> Iterator[Service]:
    """Runs the service on a free port within the block."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / 'log'
        command = [sys.executable, ROOT / 'tools/serve.py', model, '--port', '0', *options]
        with log.open('w') as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
            try:
                while not (port := re.search(r'running on http://127.0.0.1:(\d+)', log.read_text())):
                    assert process.poll() is None, log.read_text()
                    time.sleep(0.05)
                yield Service(process, log, int(port[1]))
            finally:
                process.kill()


def encode(image: Image.Image, kind: str = 'JPEG') -> bytes:
    """Returns the bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def wrong_bodies(good: bytes, max_mb: float, max_mpixels: float) -> dict[str, tuple[bytes, int]]:
    """Returns bodies that the service refuses, by name, and the status of each."""
    return {
        'empty': (b'', 400),
        'text': (b'this is not an image', 415),
        'truncated': (good[:-20], 422),
        'large body': (good + bytes(int(max_mb * 1e6) + 8_000_000), 413),  # more than the kernel holds for the service
        'many pixels': (encode(Image.new('1', (1000, int(max_mpixels * 1000) + 1)), 'PNG'), 413),
    }


def ask_at_once(service: Service, bodies: Sequence[bytes]) -> list[Answer]:
    """Sends all bodies at the same time; every third client asks to close the connection, as urllib does."""
    barrier = threading.Barrier(len(bodies))

    def ask(i: int) -> Answer:
        barrier.wait()
        return service.ask(bodies[i], Connection='keep-alive' if i % 3 else 'close')

    with ThreadPoolExecutor(len(bodies)) as clients:
        return list(clients.map(ask, range(len(bodies))))


def vary(folder: Path, number: int) -> list[bytes]:
    """Returns images of a folder as JPEG, one in ten of 12 megapixels, and others of 64 to 1,600 pixels a side."""
    paths = sorted(path for path in folder.rglob('*') if path.suffix.lower() in ('.jpg', '.jpeg', '.png'))
    if not paths:
        raise InputError(f'{folder} is no folder of images: name one with IMAGES=folder')
    images = []
    for i, path in enumerate(random.choices(paths, k=number)):
        with Image.open(path) as image:
            size = LARGE if i % 10 == 9 else (random.randint(64, 1600), random.randint(64, 1600))
            images.append(encode(image.convert('RGB').resize(size)))
    return images


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, epilog='Other options are those of tools/serve.py.')
    parser.add_argument('model', type=Path, help='a file of tools/export_onnx.py')
    parser.add_argument('images', type=Path, help='a folder of images')
    parser.add_argument('--requests', type=int, default=2000, help='(default: %(default)s)')
    parser.add_argument('--clients', type=int, default=8, help='that send them (default: %(default)s)')
    args, options = parser.parse_known_args(argv)
    if not args.model.is_file():
        raise InputError(f'{args.model} is no file: name an exported model with MODEL=file.onnx')
    if args.requests < LEAST:
        raise InputError(f'--requests {args.requests}: it must be {LEAST} or more, as memory settles in {SETTLED}')
    random.seed(0)
    images = vary(args.images, 100)
    wrong = wrong_bodies(images[0], max_mb=20, max_mpixels=MAX_MPIXELS)
    with serving(args.model, '--queue', '200', '--max-mpixels', str(MAX_MPIXELS), *options) as service:
        mixed = [(images[i // 2], 200) if i % 2 else list(wrong.values())[i // 2 % len(wrong)] for i in range(200)]
        answers = ask_at_once(service, [body for body, _ in mixed])
        print(f'200 at once: {dict(Counter(answer.status for answer in answers))}')
        assert [answer.status for answer in answers] == [status for _, status in mixed]
        before = service.memory()

        small = [body for body, _ in wrong.values() if len(body) < 1e6]
        bodies = [random.choice(images if i % 20 else small) for i in range(args.requests)]
        answers, readings, start = [], [], time.perf_counter()
        with ThreadPoolExecutor(args.clients) as clients:
            for answer in clients.map(service.ask, bodies):
                answers.append(answer)
                if len(answers) % EVERY == 0:
                    readings.append(service.memory())
                if len(answers) % 100 == 0:
                    print(f'{len(answers):5} requests  {readings[-1]:7.1f} MB', flush=True)
        seconds = time.perf_counter() - start
        health, code, log = service.ask(None, 'GET', '/health').status, service.stop(), service.log.read_text()
    first, number = SETTLED // EVERY, COMPARED // EVERY
    settled, end = min(readings[first : first + number]), min(readings[-number:])
    percentiles = quantiles([answer.seconds for answer in answers if answer.status == 200], n=20)
    result = {
        'requests': len(answers),
        'statuses': dict(Counter(answer.status for answer in answers)),
        'per_second': round(len(answers) / seconds, 2),
        'p50_ms': round(1000 * percentiles[9]),
        'p95_ms': round(1000 * percentiles[18]),
        'memory_mb': dict(before=round(before), settled=round(settled), end=round(end), most=round(max(readings))),
        'gain': round(end / settled - 1, 4),
        'exit_code': code,
    }
    print(json.dumps(result))
    is_fine = result['gain'] <= ALLOWED and health == 200 and code == 0 and 'Traceback' not in log
    return 0 if is_fine else 1


if __name__ == '__main__':
    sys.exit(main())
