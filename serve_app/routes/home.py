"""The page at `/`: where to go from here."""

from fastapi import APIRouter
from starlette.responses import HTMLResponse

router = APIRouter()
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Sightline</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:40rem;margin:3rem auto;padding:0 1rem}</style></head>
<body><h1>Sightline</h1>
<p>Images and text to embeddings, labels and search results.</p>
<ul><li><a href="/docs">The API, to try in the browser</a></li>
<li><a href="/v1/models">The models served here</a></li>
<li><a href="/health/ready">The state of each part</a></li></ul></body></html>
"""


@router.get("/", include_in_schema=False)
async def home() -> HTMLResponse:
    return HTMLResponse(PAGE)
