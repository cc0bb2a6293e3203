"""The HTTP ingress: holds the handles and limits, builds the FastAPI app whose routes use them."""

import asyncio
import gc
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from configs.settings import Settings
from serve_app import __version__, errors
from serve_app.auth import BearerAuth, key_digest
from serve_app.backpressure import bound_replica
from serve_app.fetch import ImageFetcher
from serve_app.inference import Handle, Inference, Unavailable
from serve_app.ingress import Ingress
from serve_app.inputs import InputReader
from serve_app.limits import Admissions
from serve_app.middleware import RequestContext
from serve_app.openapi import DESCRIPTION, describe
from serve_app.rehearsal import rehearse
from serve_app.routes import bulk, classify, collections, embeddings, health, home, items, models, rerank
from serve_app.shards import Shards

# Of containers made and not yet freed, before a collection. Requests leave no cycles, so it finds next to
# nothing: at Python's 700 it came with every few requests and took a twentieth of the gateway's time.
GARBAGE_OBJECTS = 10_000


class Gateway:
    """Parses, checks limits, calls handles, shapes answers. No model, no pixels, no FAISS."""

    def __init__(
        self,
        settings: Settings,
        preprocessor: Handle | None,
        encoder: Handle,
        classifiers: dict[str, Handle | Unavailable],
        heads: dict[str, Handle],
        aliases: dict[str, str],
        indexes: list[Handle],
        key_digests: tuple[bytes, ...],
    ) -> None:
        bound_replica()
        gc.set_threshold(GARBAGE_OBJECTS)
        self.settings = settings
        self.key_digests = key_digests
        self.inference = Inference(settings, preprocessor, encoder, classifiers, heads, aliases)
        self.preprocessor = preprocessor
        self.index = Shards(indexes, settings.index, settings.limits, lines=True)
        self.fetcher = ImageFetcher(settings.fetch_urls)
        self.inputs = InputReader(settings.limits, self.fetcher)
        self.admissions = Admissions(settings.limits)
        self.rehearsal: asyncio.Task[None] | None = None

    async def rehearsed(self) -> None:
        """Returns once this gateway's first requests are behind it."""
        if self.rehearsal is not None:
            await asyncio.wait({self.rehearsal})

    def __serve_build_asgi_app__(self) -> FastAPI:
        app = create_app(self)
        Ingress.application = app
        return app


def create_app(gateway: Gateway) -> FastAPI:
    """The ASGI app of one gateway replica."""
    key = secrets.token_urlsafe()  # this process's own, for its rehearsal

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        lines = [*gateway.inference.lines, *gateway.index.lines]
        limit_s = gateway.settings.limits.request_timeout_s
        gateway.rehearsal = asyncio.create_task(rehearse(app, gateway.inference, lines, key, limit_s))
        yield
        gateway.rehearsal.cancel()
        await gateway.fetcher.close()

    app = FastAPIOffline(
        redoc_url=None, title="Sightline", version=__version__, description=DESCRIPTION, lifespan=lifespan
    )
    app.state.gateway = gateway
    # A request is compared with one route after the other, behind the proxy by Serve once more. As routes of
    # the app itself, those asked for most come first, and a comparison costs a tenth of what it does within
    # an included router.
    for routes in (embeddings, collections, classify, rerank, bulk, items, models, health, home):
        app.router.routes.extend(routes.router.routes)
    describe(app)
    errors.install(app, gateway.settings.limits.retry_after_s)
    # Added last runs first: the context wraps authentication, which wraps the routes.
    digests = gateway.key_digests and (*gateway.key_digests, key_digest(key.encode()))
    app.add_middleware(BearerAuth, digests=digests, open_docs=gateway.settings.auth.open_docs)
    app.add_middleware(RequestContext, limits=gateway.settings.limits, admissions=gateway.admissions)
    return app
