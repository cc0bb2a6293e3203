"""Fetching image URLs: off by default, public addresses only, every redirect checked, capped."""

import asyncio
import datetime
import ipaddress
import ssl
from collections.abc import Awaitable, Callable
from contextvars import Context
from pathlib import Path
from typing import TypeVar

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from configs.settings import FetchSettings, LimitSettings
from deployments.errors import Overloaded
from serve_app.errors import ApiError
from serve_app.fetch import ImageFetcher
from serve_app.inputs import FETCHES, InputReader
from serve_app.limits import Memory
from serve_app.schemas import ImageInput
from tests.waiting import PATIENCE_S

Result = TypeVar("Result")

LOOPBACK = (ipaddress.IPv4Network("127.0.0.0/8"), ipaddress.IPv6Network("::1/128"))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1 and localhost, with its key, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "cert.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + signed.public_bytes(serialization.Encoding.PEM)
    )
    return path


def fetched(
    settings: FetchSettings,
    certificate: Path,
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    url: str = "https://localhost:{port}/image.jpg",
) -> bytes:
    """Fetch `url` from a TLS server on loopback that answers with `handler`."""

    async def fetch(port: int) -> bytes:
        fetcher = ImageFetcher(settings)
        try:
            return await fetcher.fetch(url.format(port=port), "input[0]")
        finally:
            await fetcher.close()

    return served(certificate, handler, fetch)


def served(
    certificate: Path,
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    scenario: Callable[[int], Awaitable[Result]],
) -> Result:
    """Run `scenario` with the port of a TLS server on loopback that answers with `handler`."""

    async def run() -> Result:
        app = web.Application()
        app.router.add_get("/{path:.*}", handler)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        port = runner.addresses[0][1]
        try:
            return await scenario(port)
        finally:
            await runner.cleanup()

    return asyncio.run(run())


async def picture(_: web.Request) -> web.StreamResponse:
    return web.Response(body=b"picture")


def test_no_proxy_of_the_environment_is_asked(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # where nobody answers
    settings = FetchSettings(enabled=True, allowed_networks=LOOPBACK, ca_file=certificate)
    assert fetched(settings, certificate, picture) == b"picture"


def test_off_by_default(certificate: Path) -> None:
    with pytest.raises(ApiError, match=r"fetch_urls\.enabled is off") as raised:
        fetched(FetchSettings(), certificate, picture)
    assert (raised.value.status, raised.value.param) == (422, "input[0]")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_an_allowed_host_is_fetched(certificate: Path, host: str) -> None:
    settings = FetchSettings(enabled=True, allowed_networks=LOOPBACK, ca_file=certificate)
    assert fetched(settings, certificate, picture, f"https://{host}:{{port}}/a.jpg") == b"picture"


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "127.0.0.1",
        "2130706433",  # 127.0.0.1 as one number
        "0x7f.1",
        "0.0.0.0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "[fe80::1]",
        "[fd00::1]",
        "224.0.0.1",
        "[64:ff9b::7f00:1]",  # 127.0.0.1 behind NAT64
        "[2002:7f00:1::]",  # 127.0.0.1 behind 6to4
        "[64:ff9b:1::7f00:1]",  # 127.0.0.1 behind a NAT64 of one's own
        "[fec0::1]",
        "[::127.0.0.1]",
    ],
)
def test_no_address_that_is_not_public_is_connected_to(certificate: Path, host: str) -> None:
    served: list[str] = []

    async def trap(request: web.Request) -> web.StreamResponse:
        served.append(request.path)
        return web.Response(body=b"secret")

    settings = FetchSettings(enabled=True, ca_file=certificate, timeout_s=PATIENCE_S)
    with pytest.raises(ApiError) as raised:
        fetched(settings, certificate, trap, f"https://{host}:{{port}}/")
    assert raised.value.status == 422
    assert "public" in raised.value.message or "not a canonical IPv4 address" in raised.value.message
    assert served == []


@pytest.mark.parametrize(
    "location", ["https://169.254.169.254/", "http://localhost/", "//10.0.0.1/x", "file:///etc/passwd"]
)
def test_a_redirect_is_checked_again(certificate: Path, location: str) -> None:
    async def redirect(_: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"location": location})

    settings = FetchSettings(enabled=True, allowed_networks=LOOPBACK, ca_file=certificate)
    with pytest.raises(ApiError, match=r"public addresses|only https"):
        fetched(settings, certificate, redirect)


def test_redirects_are_followed_and_counted(certificate: Path) -> None:
    async def countdown(request: web.Request) -> web.StreamResponse:
        left = int(request.path.strip("/") or 0)
        if left == 0:
            return web.Response(body=b"picture")
        return web.Response(status=307, headers={"location": f"/{left - 1}"})

    settings = FetchSettings(enabled=True, allowed_networks=LOOPBACK, ca_file=certificate, max_redirects=2)
    assert fetched(settings, certificate, countdown, "https://localhost:{port}/2") == b"picture"
    with pytest.raises(ApiError, match="more than 2 redirects"):
        fetched(settings, certificate, countdown, "https://localhost:{port}/3")


def test_size_is_capped_while_reading(certificate: Path) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 4096)
        except ConnectionError:
            return response

    settings = FetchSettings(enabled=True, allowed_networks=LOOPBACK, ca_file=certificate, max_bytes=10_000)
    with pytest.raises(ApiError, match="larger than 10000 bytes") as raised:
        fetched(settings, certificate, endless)
    assert raised.value.status == 413


def test_time_is_capped(certificate: Path) -> None:
    async def silent(_: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError("never answers")

    settings = FetchSettings(enabled=True, allowed_networks=LOOPBACK, ca_file=certificate, timeout_s=0.3)
    with pytest.raises(ApiError, match=r"within 0\.3 s"):
        fetched(settings, certificate, silent)


@pytest.mark.parametrize(
    "url", ["http://localhost/", "https://", "https://[", "https://local host/", "ftp://x/"]
)
def test_other_urls_are_refused(certificate: Path, url: str) -> None:
    settings = FetchSettings(enabled=True, allowed_networks=LOOPBACK, ca_file=certificate)
    with pytest.raises(ApiError, match="could not be fetched") as raised:
        fetched(settings, certificate, picture, url)
    assert raised.value.status == 422


def test_an_error_answer_is_reported(certificate: Path) -> None:
    async def missing(_: web.Request) -> web.StreamResponse:
        return web.Response(status=404)

    settings = FetchSettings(enabled=True, allowed_networks=LOOPBACK, ca_file=certificate)
    with pytest.raises(ApiError, match="answered 404"):
        fetched(settings, certificate, missing)


def test_an_untrusted_certificate_is_refused(certificate: Path) -> None:
    settings = FetchSettings(enabled=True, allowed_networks=LOOPBACK)
    with pytest.raises(ApiError, match="could not be fetched"):
        fetched(settings, certificate, picture)


def test_one_request_fetches_few_at_once_and_what_it_holds_is_bounded(certificate: Path) -> None:
    at_once = most = 0
    full = asyncio.Event()
    size = 300_000  # more than may be held whatever others hold

    async def picture_in_time(_: web.Request) -> web.StreamResponse:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        if at_once == FETCHES:
            full.set()
        await full.wait()
        await asyncio.sleep(0.05)  # in which one too many would come
        at_once -= 1
        return web.Response(body=b"x" * size)

    settings = FetchSettings(
        enabled=True, allowed_networks=LOOPBACK, ca_file=certificate, timeout_s=PATIENCE_S
    )

    async def scenario(port: int) -> None:
        fetcher = ImageFetcher(settings)
        reader = InputReader(LimitSettings(), fetcher)
        image = ImageInput(image=f"https://localhost:{port}/")
        memory = Memory(limit=20 * size + 1, retry_after_s=1)
        try:
            with memory.holding():
                assert await reader.read([image] * 20) == [b"x" * size] * 20
                assert (most, memory.held) == (FETCHES, 20 * size)
                other = asyncio.create_task(held_apart(memory, reader, [image]), context=Context())
                with pytest.raises(Overloaded, match="bytes and may hold 6000001"):
                    await other
            assert memory.held == 0
            with memory.holding(), pytest.raises(ApiError, match="may hold 6000001 bytes") as raised:
                await reader.read([image] * 21)
            assert raised.value.status == 413
            assert memory.held == 0
        finally:
            await fetcher.close()

    served(certificate, picture_in_time, scenario)


async def held_apart(memory: Memory, reader: InputReader, images: list[ImageInput]) -> None:
    with memory.holding():
        await reader.read(images)
