"""Fetching `https://` images on a caller's behalf, without lending the caller this machine's network."""

import asyncio
import ipaddress
import socket
from ipaddress import IPv4Address, IPv6Address
from typing import Any
from urllib.parse import urljoin

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from configs.settings import FetchSettings
from serve_app.errors import ApiError
from serve_app.limits import hold

NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052
UNICAST = ipaddress.IPv6Network("2000::/3")  # given out for the internet; Python calls more global
CONNECTIONS = 512  # of all requests together
REDIRECTS = (301, 302, 303, 307, 308)


class ForbiddenAddress(ValueError):  # noqa: N818 — no OSError: aiohttp would reword those
    """The host resolves to an address that is not public."""


class PublicResolver(AbstractResolver):
    """Resolves a host once and hands on only public addresses.

    The connection is made to the very addresses returned here, so a name that changes its answer
    between the check and the connection (DNS rebinding) gains nothing.
    """

    def __init__(self, settings: FetchSettings) -> None:
        self._settings = settings

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family)
        results: list[ResolveResult] = []
        for kind, _, protocol, _, address in found:
            self.check(str(address[0]))
            results.append(
                ResolveResult(
                    hostname=host,
                    host=str(address[0]),
                    port=port,
                    family=kind,
                    proto=protocol,
                    flags=socket.AI_NUMERICHOST,
                )
            )
        return results

    def check(self, address: str) -> None:
        """Raises ForbiddenAddress unless `address` is public or in an allowed network."""
        ip = _reached(ipaddress.ip_address(address.split("%")[0]))
        routed = isinstance(ip, IPv4Address) or ip in UNICAST
        if (routed and ip.is_global and not ip.is_multicast) or any(
            ip in net for net in self._settings.allowed_networks
        ):
            return
        raise ForbiddenAddress("only public addresses are fetched from")

    async def close(self) -> None:
        pass


class ImageFetcher:
    """Fetches one image; every redirect is checked again, size and time are capped."""

    def __init__(self, settings: FetchSettings) -> None:
        self._settings = settings
        self._resolver = PublicResolver(settings)
        self._session: aiohttp.ClientSession | None = None

    async def fetch(self, url: str, param: str) -> bytes:
        """The body at `url`. Raises 422 with what went wrong, 413 when it is too large; and as `hold`."""
        if not self._settings.enabled:
            message = "image URLs are not fetched here (fetch_urls.enabled is off); send a data URI or base64"
            raise ApiError(422, "url_fetch_disabled", message, param)
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                return await self._follow(url, param)
        except TimeoutError:
            message = f"the URL did not answer within {self._settings.timeout_s:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            message = f"the URL could not be fetched: {error}"
        raise ApiError(422, "url_fetch_failed", message, param)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _follow(self, url: str, param: str) -> bytes:
        for _ in range(self._settings.max_redirects + 1):
            target = URL(url)
            if target.scheme != "https" or not target.host:
                raise ValueError("only https:// URLs are fetched")
            if _is_address(target.host):
                self._resolver.check(target.host)  # aiohttp asks no resolver about a literal address
            async with self._open().get(target, allow_redirects=False) as response:
                if response.status not in REDIRECTS:
                    return await self._read(response, param)
                url = urljoin(url, response.headers.get("location", ""))
        raise ValueError(f"more than {self._settings.max_redirects} redirects")

    async def _read(self, response: aiohttp.ClientResponse, param: str) -> bytes:
        if response.status != 200:
            raise ValueError(f"it answered {response.status}")
        body = bytearray()
        async for chunk in response.content.iter_chunked(64 * 1024):
            body += chunk
            if len(body) > self._settings.max_bytes:
                message = f"the image at the URL is larger than {self._settings.max_bytes} bytes"
                raise ApiError(413, "url_too_large", message, param)
            hold(len(chunk))
        return bytes(body)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector: Any = aiohttp.TCPConnector(
                limit=CONNECTIONS,
                resolver=self._resolver,
                use_dns_cache=False,
                ssl=self._settings.tls(),
                force_close=True,
            )
            self._session = aiohttp.ClientSession(
                connector=connector, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()
            )
        return self._session


def _reached(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that an IPv6 one stands for (mapped, 6to4, Teredo, NAT64), else itself."""
    if isinstance(ip, IPv4Address):
        return ip
    if ip in NAT64:
        return IPv4Address(int(ip) & 0xFFFF_FFFF)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else ip)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        return False
    return True
