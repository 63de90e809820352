"""`OpenAIModel` over TLS: a server that cannot prove who it is gets no request, and a connection that is cut does not end an answer (D5)."""

import datetime as dt
import ssl
from functools import partial

import pytest
import trio
from hostile_server import BEHAVIOURS, KEY, serving
from stage import worker_leaves_nothing  # noqa: F401 - The import makes this autouse fixture apply to the tests of this file.

from runners import ExecuteBatch, InlineHost, OpenAIModel, Sampling, device_worker
from runners.errors import NetworkError
from supervise import open_tree

trustme = pytest.importorskip("trustme", reason="needs trio-supervise[dev]: trustme is not installed")


def server_context(authority, name="localhost", oldest=ssl.TLSVersion.TLSv1_2, **options):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = oldest
    authority.issue_cert(name, **options).configure_cert(context)
    return context


@pytest.fixture
def authority(tmp_path, monkeypatch):
    """A certificate authority that the client trusts."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    monkeypatch.setenv("TLS_KEY", KEY)
    return authority


def worker_for(url, **options):
    spec = OpenAIModel(url, "m", key_env="TLS_KEY", first_chunk_timeout=10, **options)
    return device_worker("api", spec, host=InlineHost())


def request(name="a"):
    return ExecuteBatch(name, "go on", sampling=Sampling(max_tokens=20, seed=1))


GOOD = next(name for name in sorted(BEHAVIOURS) if name.startswith("is_"))


@pytest.mark.trio
async def test_a_server_with_a_certificate_is_served(authority):
    """D5: Many requests, with one TLS context for all sessions of the runner."""
    async with serving(BEHAVIOURS[GOOD], server_context(authority)) as (url, peers):
        async with open_tree(worker_for(url, trust_env=True), sinks=[]) as tree:
            for name in "abc":
                answer = await tree["api"].call(request(name))
                assert answer.finish_reason is not None
        assert len(peers) == 3


@pytest.mark.parametrize("fault", ["unknown authority", "another name", "out of date"])
@pytest.mark.trio
async def test_a_server_that_cannot_prove_who_it_is_gets_no_request(authority, fault):
    """D5: The request is a `NetworkError` with the reason, and the key is not sent. The worker goes on."""
    past = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    context = {
        "unknown authority": lambda: server_context(trustme.CA()),
        "another name": lambda: server_context(authority, "elsewhere.example"),
        "out of date": lambda: server_context(authority, not_after=past),
    }[fault]()
    async with serving(BEHAVIOURS[GOOD], context) as (url, peers):
        async with open_tree(worker_for(url, trust_env=True), sinks=[]) as tree:
            with pytest.raises(NetworkError, match="certificate verify failed") as raised:
                await tree["api"].call(request())
            assert KEY not in repr(raised.value)
            assert tree["api"].status().children[0].incarnation == 1
        assert not peers


@pytest.mark.trio
async def test_a_server_without_tls_gets_no_request(authority):
    """D5: It answers with plain HTTP."""
    got = b""

    async def answer(stream):
        nonlocal got
        got += await stream.receive_some(65536)
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, host="127.0.0.1"), answer, 0)
        url = f"https://localhost:{listener.socket.getsockname()[1]}/v1"
        async with open_tree(worker_for(url, trust_env=True), sinks=[]) as tree:
            with pytest.raises(NetworkError, match=r"WRONG_VERSION_NUMBER|record layer failure"):
                await tree["api"].call(request())
        nursery.cancel_scope.cancel()
    assert KEY.encode() not in got


@pytest.mark.trio
async def test_a_connection_that_is_cut_without_a_goodbye_is_no_end(authority):
    """D5: TCP ends without the end of TLS, so anything on the way may have cut the answer."""

    async def cut(peer):
        await peer.begin()
        for piece in "abc":
            await peer.event({"choices": [{"index": 0, "text": piece, "finish_reason": None}]})
        peer.stream.transport_stream.socket.close()

    text = ""
    async with (
        serving(cut, server_context(authority)) as (url, _),
        open_tree(worker_for(url, trust_env=True), sinks=[]) as tree,
    ):
        with pytest.raises(NetworkError):
            async with tree["api"].stream(request()) as chunks:
                async for chunk in chunks:
                    text += chunk.text
    assert text == "abc"


@pytest.mark.trio
async def test_a_server_that_never_says_goodbye_delays_no_end(authority):
    """D5: Closing ends after a time of its own."""
    with trio.fail_after(20):
        async with (
            serving(BEHAVIOURS["stalls"], server_context(authority)) as (url, _),
            open_tree(worker_for(url, trust_env=True, next_chunk_timeout=0.3), sinks=[]) as tree,
        ):
            with pytest.raises(NetworkError):
                await tree["api"].call(request())
