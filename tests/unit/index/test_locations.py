"""What a request may name as the place of a snapshot."""

from pathlib import Path

import pytest

from configs.settings import Settings, SettingsError
from index.errors import BadLocation, IndexUnavailable
from index.locations import Location, requested

LOCAL = "/srv/snapshots"
S3 = "s3://bucket/team/a?endpoint_override=minio:9000"
ALLOWED = (LOCAL, S3)


@pytest.mark.parametrize(
    ("to", "location"),
    [
        ("monday", Location(LOCAL, ("monday",))),
        ("2026/day=20/", Location(LOCAL, ("2026", "day=20"))),
        (LOCAL, Location(LOCAL)),
        (f"{LOCAL}/a.b", Location(LOCAL, ("a.b",))),
        (f"file://{LOCAL}/a", Location(LOCAL, ("a",))),
        ("s3://bucket/team/a", Location(S3)),
        ("s3://bucket/team/a/b/c", Location(S3, ("b", "c"))),
        ("s3://bucket/team/a/b?endpoint_override=minio:9000", Location(S3, ("b",))),
    ],
)
def test_places_at_and_below_those_allowed(to: str, location: Location) -> None:
    assert requested(to, ALLOWED) == location


@pytest.mark.parametrize(
    "to",
    [
        "..",
        "a/../../b",
        "./a",
        "a//b",
        ".hidden",
        "a\\..\\b",
        "%2e%2e/b",
        "a\0b",
        "a\nb",
        "a b",
        "é",
        "x" * 201,
        "/",
        "/srv",
        "/srv/snapshots2",
        f"{LOCAL}/../other",
        f"{LOCAL}/%2e%2e/other",
        f"file://{LOCAL}/../x",
        f"file://host{LOCAL}/x",
        f"file:{LOCAL}/x",
        "s3://bucket",
        "s3://bucket/team",
        "s3://bucket/team/ab",
        "s3://bucket/team/a/../b",
        "s3://other/team/a",
        "s3://key:secret@bucket/team/a",
        "s3://bucket/team/a/b?endpoint_override=evil:80",
        "s3://bucket/team/a/b?endpoint_override=minio:9000&scheme=http",
        "s3://bucket/team/a/b#x",
        "gs://bucket/team/a",
        "http://bucket/team/a",
    ],
)
def test_anything_else_is_refused_with_what_is_accepted(to: str) -> None:
    with pytest.raises(BadLocation) as caught:
        requested(to, ALLOWED)
    _, _, accepted = caught.value.message.partition(
        "give a name, or a path at or below /srv/snapshots, s3://"
    )
    assert accepted.startswith("bucket/team/a (")


def test_a_link_out_of_the_place_is_refused(tmp_path: Path) -> None:
    base, outside = tmp_path / "snapshots", tmp_path / "outside"
    base.mkdir()
    outside.mkdir()
    (base / "link").symlink_to(outside)
    requested("new", [str(base)]).open()
    with pytest.raises(BadLocation, match="is a link to another place"):
        requested("link/x", [str(base)]).open()


@pytest.mark.parametrize("uri", ["nowhere://x", "s3://bucket/a?endpoint=x"])
def test_a_place_that_cannot_be_opened_is_told(uri: str) -> None:
    with pytest.raises(IndexUnavailable, match="cannot be opened"):
        Location(uri, ("x",)).open()


def test_settings_hold_no_credentials() -> None:
    Settings.from_args({"index.snapshot_locations": "[/a@b, s3://bucket/x]"})
    for key, value in (
        ("index.snapshot_locations", ["s3://key:secret@bucket/x"]),
        ("index.restore_from", "s3://key:secret@bucket/x"),
    ):
        with pytest.raises(SettingsError, match="no keys") as caught:
            Settings.from_args({key: value})
        assert "secret" not in str(caught.value)
