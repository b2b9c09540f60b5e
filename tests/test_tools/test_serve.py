"""The service of exported models: what it answers to good, wrong, too many and interrupted requests."""

import argparse
import asyncio
import contextlib
import http.client
import json
import re
import socket
import threading
import time
import tracemalloc

import pytest
from PIL import Image

from pvt_mm.serving.uploads import RefusedError, read_body
from pvt_mm.utils.errors import InputError
from tests.load.load import ask_at_once, encode, serving, wrong_bodies
from tools import serve

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('fastapi')

LIMITS = argparse.Namespace(workers=1, queue=0, max_mb=1, max_mpixels=1)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """A classifier that tells red, green and blue images apart."""
    helper = onnx.helper
    graph = helper.make_graph(
        [
            helper.make_node('GlobalAveragePool', ['image'], ['mean']),
            helper.make_node('Flatten', ['mean'], ['flat']),
            helper.make_node('Softmax', ['flat'], ['scores']),
        ],
        'classifier',
        [helper.make_tensor_value_info('image', onnx.TensorProto.FLOAT, ['batch', 3, 'height', 'width'])],
        [helper.make_tensor_value_info('scores', onnx.TensorProto.FLOAT, ['batch', 3])],
    )
    file = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid('', 20)])
    steps = [{'type': 'Resize', 'scale': [64, 64], 'keep_ratio': True, 'interpolation': 'bilinear', 'backend': 'cv2'}]
    preprocessing = dict(channels=3, steps=steps, order='RGB', mean=[0, 0, 0], std=[64, 64, 64])
    metadata = dict(
        task='classification',
        classes=json.dumps(['red', 'green', 'blue']),
        palette=json.dumps([[255, 0, 0], [0, 255, 0], [0, 0, 255]]),
        preprocessing=json.dumps({**preprocessing, 'pad_divisor': 32, 'pad_size': None, 'pad_value': 0}),
        precision='float32',
    )
    helper.set_model_props(file, metadata)
    path = tmp_path_factory.mktemp('model') / 'model.onnx'
    onnx.save(file, path)
    return path


def test_200_requests_at_once_are_each_answered_with_their_status(model):
    images = {color: (encode(Image.new('RGB', (160, 120), color)), 200) for color in ('red', 'lime', 'blue')}
    kinds = list((images | wrong_bodies(images['red'][0], LIMITS.max_mb, LIMITS.max_mpixels)).items())
    sent = [kinds[i % len(kinds)] for i in range(200)]
    with serving(model, '--queue', '200', '--threads', '1', '--max-mb', '1', '--max-mpixels', '1') as service:
        answers = ask_at_once(service, [body for _, (body, _) in sent])
        for (kind, (_, status)), answer in zip(sent, answers, strict=True):
            assert answer.status == status, (kind, answer)
            if status == 200:
                best = answer.content['objects'][0]
                assert best == {'label': kind.replace('lime', 'green'), 'score': pytest.approx(0.9085, abs=2e-3)}
            else:
                assert len(answer.content['detail'].splitlines()) == 1
        assert service.ask(None, 'GET', '/health').status == 200
        assert service.ask(None, 'GET').status == 405
        assert service.ask(None, 'GET', '/docs').status == 404
        body, status = images['blue']
        with contextlib.closing(http.client.HTTPConnection('127.0.0.1', service.port, timeout=60)) as connection:
            connection.putrequest('POST', '/predict')
            connection.putheader('Content-Length', str(len(body)))
            connection.endheaders(body[:100])
            assert service.ask(None, 'GET', '/health').status == 200  # the request above runs now
            service.process.terminate()
            while 'Shutting down' not in service.log.read_text():
                time.sleep(0.02)
            connection.send(body[100:])
            assert connection.getresponse().status == status
        assert service.process.wait(60) == 0
        assert 'Traceback' not in service.log.read_text()


IMAGE = {'type': 'http.request', 'body': encode(Image.new('RGB', (8, 8)), 'PNG'), 'more_body': False}
GONE = {'type': 'http.disconnect'}


async def ask_app(app, *messages: dict) -> tuple[int, dict]:
    """Returns status and headers of the answer to a client that sends ``messages`` and then waits."""
    sent, remaining = [], list(messages)

    async def receive():
        return remaining.pop(0) if remaining else await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    await app(dict(type='http', method='POST', path='/predict', headers=[], query_string=b''), receive, send)
    return sent[0]['status'], dict(sent[0]['headers'])


def test_requests_beyond_the_queue_are_told_to_come_back():
    started, finish = threading.Event(), threading.Event()

    def model(file):
        started.set()
        assert finish.wait(60)
        return argparse.Namespace(objects=[])

    async def ask():
        app = serve.build_app(model, argparse.Namespace(**{**vars(LIMITS), 'queue': 1}))
        tasks = [asyncio.create_task(ask_app(app, IMAGE)) for _ in range(2)]
        await asyncio.to_thread(started.wait, 60)
        refused = await ask_app(app, IMAGE)
        finish.set()
        return refused, [status for status, _ in await asyncio.gather(*tasks)], (await ask_app(app, IMAGE))[0]

    (status, headers), admitted, later = asyncio.run(ask())
    assert (status, headers[b'retry-after']) == (503, b'1')
    assert (admitted, later) == ([200, 200], 200)


def test_no_more_predictions_than_workers_run_at_a_time():
    running, most, lock = 0, 0, threading.Lock()

    def model(file):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.05)
        with lock:
            running -= 1
        return argparse.Namespace(objects=[])

    async def ask():
        app = serve.build_app(model, argparse.Namespace(**{**vars(LIMITS), 'workers': 3, 'queue': 9}))
        return await asyncio.gather(*(ask_app(app, IMAGE) for _ in range(12)))

    assert [status for status, _ in asyncio.run(ask())] == [200] * 12
    assert most == 3


def test_a_body_above_the_limit_is_not_kept():
    part = bytes(100_000)

    async def parts():
        for _ in range(500):
            yield part

    tracemalloc.start()
    try:
        with pytest.raises(RefusedError, match='larger than 1 MB'):
            asyncio.run(read_body(parts(), 1))
        assert tracemalloc.get_traced_memory()[1] < 3e6  # of 50 MB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--score-thr', '1.5'], '--score-thr 1.5: it must be from 0 to 1'),
        (['--port', '65536'], '--port 65536: it must be from 1 to 65535, or 0'),
        (['--workers', '0'], '--workers must be 1 or more'),
        (['--port', 'USED'], 'Address already in use .*: choose another --port'),
    ],
)
def test_wrong_options_are_one_line_before_the_model_loads(options, message, capsys, monkeypatch):
    monkeypatch.setattr(serve.Image, 'MAX_IMAGE_PIXELS', None)  # as main sets it
    with socket.create_server(('127.0.0.1', 0)) as used:
        port = str(used.getsockname()[1])
        assert serve.main(['gone.onnx', *(port if one == 'USED' else one for one in options)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f'error: {message}', line), line


@pytest.mark.parametrize('messages', [(IMAGE, GONE), (IMAGE | {'more_body': True}, GONE)], ids=['waiting', 'sending'])
def test_a_client_that_disconnects_is_not_computed(messages):
    calls = []
    asyncio.run(ask_app(serve.build_app(calls.append, LIMITS), *messages))
    assert not calls


def test_what_the_service_cannot_do_is_an_answer(monkeypatch):
    def fail(error):
        raise error

    def status(model, message):
        return asyncio.run(ask_app(serve.build_app(model, LIMITS), message))[0]

    assert status(lambda file: fail(InputError('too thin')), IMAGE) == 422
    with pytest.raises(RuntimeError, match='no memory'):  # for the log
        status(lambda file: fail(RuntimeError('no memory')), IMAGE)
    monkeypatch.setattr(serve, 'SECONDS', 0.05)
    assert status(None, IMAGE | {'more_body': True}) == 408
