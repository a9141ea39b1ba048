"""The browser as a device: what a page sends, who may send it, and pages in a real Chromium."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fakes import SIZE, fake_answers, tiny_answers, tiny_pixels, write_onnx, write_tflite
from pages import (
    ASSETS,
    CHROMIUM,
    GREETING,
    MISSING,
    binary,
    faulty_assets,
    hello,
    remote,
    said,
    stub_assets,
    text,
    visit,
    while_running,
)

from hetero.devices import Conditions, Plan, _web_assets, browser, examine, open_device, run, timing
from hetero.devices._protocol import Reader
from hetero.devices._timing import judge
from hetero.devices._web_run import MAX_EVENT_BYTES, MAX_MESSAGE_BYTES, MalformedError, WebRun
from hetero.devices._web_server import PAGE, Server, own_address
from hetero.errors import BundleError, ConfigError, DeviceError, Interrupted

GOLDEN = Path(__file__).parent / "golden"
OUTPUTS = np.arange(6, dtype=np.float32).reshape(3, 2)
PIXELS = tiny_pixels(3)
PLAN = Plan(
    warmup_runs=1, warmup_s=0, min_runs=3, min_s=0, max_s=60, timeout_s=300, reconnect_s=60,
    heartbeat_s=30, beat_s=60,
)  # fmt: skip
HASTY = dataclasses.replace(PLAN, reconnect_s=0.5, restarts=1, heartbeat_s=1, timeout_s=60)

real = pytest.mark.skipif(bool(MISSING), reason=MISSING or "there")


@pytest.fixture(autouse=True, scope="module")
def _no_server_stays():
    yield
    browser.close_all()


# -- the run folder -------------------------------------------------------------------------------


def ordered(folder: Path, count: int = 3) -> WebRun:
    folder.mkdir(exist_ok=True)
    return WebRun(1, folder, {"inputs": {"shape": [count, 4, 4, 3]}})


def events(folder: Path) -> list[dict]:
    return [sent for sent, _ in Reader().feed((folder / "log.jsonl").read_bytes())]


def test_what_a_worker_says_becomes_the_files_it_cannot_write(tmp_path):
    kept = ordered(tmp_path)
    for message in said(OUTPUTS):
        kept.take(message)
    assert (tmp_path / "out.bin").read_bytes() == OUTPUTS.astype("<f4").tobytes()
    assert np.fromfile(tmp_path / "lat.bin", "<i8").tolist() == [10, 11, 12, 100, 101, 102]
    found = events(tmp_path)
    assert [x["hetero"] for x in found] == [
        "hello", "ready", "first", "run", "run", "run", "bench", "done",
    ]  # fmt: skip
    for name in ("out", "lat"):
        raw = (tmp_path / f"{name}.bin").read_bytes()
        assert found[-1][f"{name}_sha256"] == hashlib.sha256(raw).hexdigest()
        assert found[-1][f"{name}_bytes"] == len(raw)
    assert kept.ended


def test_a_message_that_comes_twice_changes_nothing(tmp_path):
    kept = ordered(tmp_path)
    everything = said(OUTPUTS)
    for last in range(1, len(everything) + 1):  # after each cut, all from the beginning
        for message in everything[:last]:
            kept.take(message)
    assert (tmp_path / "out.bin").read_bytes() == OUTPUTS.astype("<f4").tobytes()
    assert len(events(tmp_path)) == 8
    assert kept.sequence == len(everything)


@pytest.mark.parametrize(
    ("at", "message", "what"),
    [
        (0, "", "text that is no event"),
        (0, "[]", "text that is no event"),
        (0, "[" * 9000, "text that is no event"),
        (0, '{"seq": 1, "worker": 1, "event": 3}', "text that is no event"),
        (0, '{"seq": 1, "worker": 1, "event": {"hetero": NaN}}', "text that is no event"),
        (0, text(1, "telemetry"), "an event 'telemetry'"),
        (0, text(1, "run", i=0, n=1, ns=1), "an event 'run'"),
        (0, "x" * (MAX_EVENT_BYTES + 1), "an event of 16385 characters"),
        (0, text(2, "hello", **GREETING), "message 2 after 0"),
        (0, text(-1, "hello", **GREETING), "a message numbered '-1'"),
        (0, text(True, "hello", **GREETING), "a message numbered 'True'"),
        (0, b"", "a binary message of 0 bytes"),
        (0, binary(1, 0, 0, 1, [5], [1, 2]), "rows before the first inference"),
        (2, text(3, "first", ns=1, dim=2, batch=1, start=1, runs=0), "a first at row 1"),
        (2, text(3, "first", ns=1, dim=2, batch=1, start=0, runs=1), "a first at row 0 and run 1"),
        (2, text(3, "first", ns=1, dim=0, batch=1, start=0, runs=0), "a first at row 0"),
        (2, text(3, "first", ns=1, dim="2", batch=1, start=0, runs=0), "a first with dim"),
        (2, text(3, "first", ns=1, dim=2**40, batch=1, start=0, runs=0), "a first with dim"),
        (3, text(4, "first", ns=1, dim=2, batch=1, start=0, runs=0), "a first at row 0"),
        (3, binary(4, 0, 1, 1, [5], [1, 2]), "rows 1 to 2"),
        (3, binary(4, 0, 0, 4, [5], [1] * 8), "rows 0 to 4"),
        (3, binary(4, 0, 0, 0, [5]), "rows 0 to 0"),
        (3, binary(4, 0, 0, 1, [5], [1, 2, 3]), "rows 0 to 1 in 20 bytes"),
        (3, binary(4, 0, 0, 1, [0], [1, 2]), "a time of 0 ns"),
        (3, binary(4, 0, 0, 1, [-5], [1, 2]), "a time of -5 ns"),
        (3, binary(4, 7, 0, 1, [5], [1, 2]), "a binary message of kind 7"),
        (3, binary(4, 1, 0, 1, [5]), "runs 0 to 1"),
        (7, binary(8, 1, 1, 1, [5]), "runs 1 to 2"),
        (7, binary(8, 1, 0, 2, [5]), "runs 0 to 2 in 8 bytes"),
        (3, text(4, "done", rows=3, runs=3, dim=2), r"a done with .* that did not come"),
        (8, said(OUTPUTS, out_sha256="0" * 64)[-1], "not those which it signed"),
        (8, said(OUTPUTS, lat_sha256="0" * 64)[-1], "not those which it signed"),
        (9, text(10, "beat", phase="x", rows=3, runs=3), "a message after its last word"),
    ],
)
def test_a_message_that_no_worker_sends_is_refused_and_nothing_is_written(
    tmp_path, at, message, what
):
    kept = ordered(tmp_path)
    for good in said(OUTPUTS)[:at]:
        kept.take(good)
    before = {x.name: x.read_bytes() for x in tmp_path.iterdir()}
    with pytest.raises(MalformedError, match=what):
        kept.take(message)
    assert {x.name: x.read_bytes() for x in tmp_path.iterdir()} == before


def test_last_words_of_a_worker_that_was_given_up_are_nothing(tmp_path):
    kept = ordered(tmp_path)
    kept.fail("gone")
    kept.take(said(OUTPUTS)[0])
    kept.take(text(1, "hello", of=7, **GREETING))
    assert [x["hetero"] for x in events(tmp_path)] == ["error"]


@pytest.mark.parametrize(
    ("out_bytes", "lat_bytes", "start"),
    [(0, 0, 0), (8, 0, 0), (8, 8, 1), (16, 8, 1), (17, 17, 2), (24, 24, 3)],
)
def test_the_next_worker_goes_on_at_the_first_row_that_is_not_there(
    tmp_path, out_bytes, lat_bytes, start
):
    kept = ordered(tmp_path)
    for message in said(OUTPUTS):
        kept.take(message)
    for name, size in (("out", out_bytes), ("lat", lat_bytes)):
        with (tmp_path / f"{name}.bin").open("ab") as file:
            file.truncate(size)
    again = ordered(tmp_path)
    assert (again.have["out_bytes"], again.have["lat_bytes"]) == (out_bytes, lat_bytes)
    for message in said(OUTPUTS, start=start):
        again.take(message)
    assert (tmp_path / "out.bin").read_bytes() == OUTPUTS.astype("<f4").tobytes()
    assert np.fromfile(tmp_path / "lat.bin", "<i8").tolist() == [10, 11, 12, 100, 101, 102]


def test_measured_runs_that_are_there_stay_with_their_time(tmp_path):
    kept = ordered(tmp_path)
    for message in said(OUTPUTS)[:-1]:
        kept.take(message)
    assert ordered(tmp_path).have == {"out_bytes": 24, "lat_bytes": 48, "measured_ns": 303}


# -- the address ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("port=eighty", "port must be a number from 0 to 65535, got 'eighty'"),
        ("port=65536", "port must be a number"),
        ("threads=0", "threads must be a number from 1 to 64"),
        ("wait_s=0", "wait_s must be a number"),
        ("runtime=cuda", "runtime must be wasm or webgpu, got 'cuda'"),
        ("chromium=/nowhere/chrome", "/nowhere/chrome is not a program"),
        ("cert=a.pem", "cert= and key= belong together"),
        ("colour=red", "cannot use 'colour=red'"),
    ],
)
def test_an_address_that_cannot_be_is_refused(address, said):
    with pytest.raises(ConfigError, match=f"browser: .*{said}"):
        open_device(f"browser:{address}")


def test_without_a_word_it_listens_to_this_machine_only_and_waits_for_a_person():
    found = open_device("browser")
    assert (found.name, found.bind, found.chromium) == ("browser", "127.0.0.1", "")
    assert found.execution == "native"


def test_two_runtimes_of_one_page_never_run_at_once():
    wasm, webgpu = open_device("browser"), open_device("browser:runtime=webgpu")
    assert wasm.lane == webgpu.lane != open_device("browser:port=8766").lane


def test_a_chromium_of_this_machine_is_no_phone(tmp_path):
    program = tmp_path / "chromium"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert open_device(f"browser:chromium={program}").execution == "emulated"


def test_missing_runtimes_are_named_with_the_command_that_fetches_them(tmp_path):
    (tmp_path / "onnxruntime-web").mkdir()
    device = open_device(f"browser:port=0,assets={tmp_path}")
    with (
        pytest.raises(ConfigError, match=r"ort\.wasm\.min\.mjs is missing .*node_modules"),
        device.connect(tmp_path / "work"),
    ):
        pass
    with (
        pytest.raises(ConfigError, match="run once, with npm installed: hetero devices build"),
        open_device("browser:port=0").connect(tmp_path / "work"),
    ):
        pass


def test_without_npm_it_is_one_line(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(DeviceError, match=r"^browser: npm is not installed") as caught:
        browser.build()
    assert caught.value.exit_code == 4


def fake_npm(folder: Path, script: str) -> str:
    folder.mkdir()
    (folder / "npm").write_text(f"#!{sys.executable}\n{script}\n")
    (folder / "npm").chmod(0o755)
    return str(folder)


def test_an_archive_that_is_not_the_pinned_one_is_not_unpacked(tmp_path, monkeypatch):
    # What npm is asked for are NAME@VERSION, its last arguments.
    script = (
        "import sys\nfor spec in (x for x in sys.argv if x.count('@') and x[-1].isdigit()):\n"
        "    name, _, version = spec.rpartition('@')\n"
        "    name = name.replace('@', '').replace('/', '-')\n"
        "    open(f'{name}-{version}.tgz', 'wb').write(b'other')\n"
    )
    monkeypatch.setenv("PATH", fake_npm(tmp_path / "bin", script))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(DeviceError, match="is not the pinned archive"):
        browser.build()
    assert list((tmp_path / "cache").rglob("*.mjs")) == []


def test_an_npm_that_fails_is_told_in_its_own_words(tmp_path, monkeypatch):
    script = "import sys; sys.exit('npm error code E404\\nnpm error nothing\\n there')"
    monkeypatch.setenv("PATH", fake_npm(tmp_path / "bin", script))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(DeviceError, match=r"it said: npm error code E404 npm error nothing there$"):
        browser.build()


@real
def test_assets_are_of_the_pinned_versions():
    assert _web_assets.versions(ASSETS) == {p.name: p.version for p in _web_assets.PACKAGES}


# -- who may, and what it gets --------------------------------------------------------------------


@pytest.fixture
def server(tmp_path):
    pytest.importorskip("aiohttp", reason="needs the extra 'web'")
    assets = _web_assets.served(stub_assets(tmp_path / "assets"))
    made = Server("browser", assets, _web_assets.versions(tmp_path / "assets"), "127.0.0.1", 0)
    made.open()
    yield made
    made.close()


async def ask(url: str, **options) -> tuple[int, str, dict]:
    import aiohttp

    async with aiohttp.ClientSession() as session, session.get(url, **options) as answer:
        return answer.status, await answer.text(errors="replace"), dict(answer.headers)


def test_nothing_is_said_without_the_token(server):
    good = server.address("127.0.0.1")
    base = good.removesuffix(f"{server.token}/")
    wrong = ["", "x/", f"{server.token[:-1]}/", f"{server.token}x/", f"%00{server.token}/"]
    names = ["", "page.js", "socket", "assets/onnxruntime-web/package.json", "store/x.bin"]
    for path in [f"{token}{name}" for token in wrong for name in names]:
        status, said, _ = asyncio.run(ask(base + path))
        assert (status, server.token in said) == (403, False), path
    assert server.refusals == len(wrong) * len(names)
    assert asyncio.run(ask(good))[0] == 200


def test_every_server_has_a_token_of_its_own(server):
    other = Server("browser", {}, {}, "127.0.0.1", 0)
    assert other.token != server.token
    assert len(other.token) >= 20
    assert server.token not in repr(server)


@pytest.mark.parametrize(
    "name",
    [
        "../browser.py", "..%2fbrowser.py", "%2e%2e/browser.py", "assets/../../etc/passwd",
        "assets//etc/passwd", "/etc/passwd", "store/../job.json", "index.html", "page.js/",
        "assets/onnxruntime-web/dist/ort.all.min.mjs",
    ],
)  # fmt: skip
def test_only_listed_files_are_served(server, name):
    import aiohttp
    from yarl import URL

    async def raw() -> int:
        url = URL(server.address("127.0.0.1") + name, encoded=True)
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return answer.status

    assert asyncio.run(raw()) in (403, 404)


def test_a_page_is_isolated_and_reaches_this_server_alone(server):
    url = server.address("127.0.0.1")
    for name in ("", "worker.js", "assets/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm"):
        status, _, headers = asyncio.run(ask(url + name))
        assert status == 200
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "default-src 'none'" in headers["Content-Security-Policy"]


def test_the_page_names_no_other_place():
    for path in PAGE.iterdir():
        assert not re.findall(r"https?://\S+", path.read_text()), path


async def nothing(way, order) -> None:
    """A page that does not work."""


def test_a_second_page_is_refused_with_a_reason_and_the_first_stays(server):
    import aiohttp

    async def both() -> tuple[int | None, str]:
        url = server.address("127.0.0.1") + "socket"
        async with aiohttp.ClientSession() as session, session.ws_connect(url) as first:
            await first.send_str(hello("one"))
            assert (await first.receive_json())["do"] == "welcome"
            async with session.ws_connect(url) as second:
                await second.send_str(hello("two"))
                end = await second.receive()
            assert server.is_here
            await first.ping()
            return second.close_code, str(end.extra)

    code, reason = asyncio.run(both())
    assert (code, "Another page is connected" in reason) == (4001, True)


def test_the_same_page_takes_the_place_of_its_dead_connection(server):
    import aiohttp

    async def twice() -> dict:
        url = server.address("127.0.0.1") + "socket"
        async with aiohttp.ClientSession() as session, session.ws_connect(url) as first:
            await first.send_str(hello("one"))
            await first.receive_json()
            async with session.ws_connect(url) as second:
                await second.send_str(hello("one"))
                return dict(await second.receive_json())

    assert asyncio.run(twice())["do"] == "welcome"


@pytest.mark.parametrize(
    "first",
    ["", "[]", "{}", '{"page": "hello"}', hello(""), hello("x" * 101), hello("x", machine=3),
     hello("x", page="bye"), "[" * 9000],
)  # fmt: skip
def test_a_page_that_does_not_greet_is_sent_away(server, first):
    import aiohttp

    async def greet() -> int | None:
        url = server.address("127.0.0.1") + "socket"
        async with aiohttp.ClientSession() as session, session.ws_connect(url) as way:
            await way.send_str(first)
            await way.receive()
            return way.close_code

    assert asyncio.run(greet()) == 4002
    assert not server.is_here


def test_what_a_page_says_of_itself_is_cut_to_size(server):
    import aiohttp

    machine = {"cpu": "x" * 999, "cpus": 1, "features": ["y" * 99] * 99, "system": "z" * 999}

    async def greet() -> None:
        url = server.address("127.0.0.1") + "socket"
        async with aiohttp.ClientSession() as session, session.ws_connect(url) as way:
            facts = {str(i): "v" * 999 for i in range(99)}
            await way.send_str(hello("x", machine=machine, facts=facts))
            await way.receive_json()

    asyncio.run(greet())
    assert len(json.dumps(server.page)) < 12_000


def test_a_taken_port_is_one_line(server):
    other = Server("browser:x", {}, {}, "127.0.0.1", server.port)
    with pytest.raises(DeviceError, match=rf"^browser:x: cannot listen on .* {server.port}"):
        other.open()


# -- a run with a page that is no browser ---------------------------------------------------------


@pytest.fixture
def stub(tmp_path):
    """A device with a server, nothing to compute with, and its address."""
    pytest.importorskip("aiohttp", reason="needs the extra 'web'")
    pytest.importorskip("segno", reason="needs the extra 'web'")
    assets = stub_assets(tmp_path / "stub")
    device = open_device(f"browser:port=0,assets={assets},wait_s=30")
    yield device, browser._host(device).server.address("127.0.0.1")
    browser.close_all()


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "any.onnx"
    path.write_bytes(b"any")
    return path


def host(device, model, folder, plan=PLAN, inputs=PIXELS, **more):
    return lambda: run(device, model, "onnx", inputs, folder=folder / "out", plan=plan, **more)


async def all_of_it(way, order) -> None:
    for message in said(OUTPUTS, worker=order["worker"]):
        await (way.send_str if isinstance(message, str) else way.send_bytes)(message)


def test_rows_times_and_facts_of_a_page_come_back_and_its_token_is_in_no_file(
    tmp_path, stub, model
):
    device, url = stub
    result = asyncio.run(while_running(host(device, model, tmp_path), visit(url, all_of_it)))
    np.testing.assert_array_equal(result.outputs, OUTPUTS)
    assert result.latency_ns.tolist() == [100, 101, 102]
    assert result.facts["adapter"] == "none"
    assert result.facts["worker"] == "browser"
    token = browser._host(device).server.token
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or token.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_page_cut_after_any_message_goes_on_behind_the_last_that_arrived(
    tmp_path, stub, model, cut
):
    device, url = stub
    messages: list = []

    async def some(way, order) -> None:
        messages[:] = said(OUTPUTS, worker=order["worker"])
        for message in messages[:cut]:
            await (way.send_str if isinstance(message, str) else way.send_bytes)(message)
        way._response.connection.transport.abort()

    async def page() -> None:
        import aiohttp

        await visit(url, some)
        # The same page again: it says which worker it has, and is told what came of it.
        async with aiohttp.ClientSession() as session, session.ws_connect(url + "socket") as way:
            await way.send_str(hello("one", 1))
            have = (await way.receive_json())["have"]
            assert 0 <= have <= cut
            for message in messages[have:]:
                await (way.send_str if isinstance(message, str) else way.send_bytes)(message)
            async for _ in way:
                pass

    result = asyncio.run(while_running(host(device, model, tmp_path), page()))
    np.testing.assert_array_equal(result.outputs, OUTPUTS)
    assert result.facts["restarts"] == "0"
    assert [x["hetero"] for x in events(result.folder)].count("run") == 3


def test_a_page_that_lost_its_worker_gets_a_new_one_at_the_first_missing_row(tmp_path, stub, model):
    device, url = stub
    starts = []

    async def reloaded(way, order) -> None:
        starts.append(order["have"])
        messages = said(OUTPUTS, start=len(starts) - 1, worker=order["worker"])
        # hello, ready, first and one row; then the page is loaded anew.
        for message in messages[: 4 if len(starts) == 1 else None]:
            await (way.send_str if isinstance(message, str) else way.send_bytes)(message)
        if len(starts) == 1:
            await way.close()

    async def page() -> None:
        await visit(url, reloaded)
        await visit(url, reloaded)

    result = asyncio.run(while_running(host(device, model, tmp_path), page()))
    np.testing.assert_array_equal(result.outputs, OUTPUTS)
    assert [(x["out_bytes"], x["lat_bytes"]) for x in starts] == [(0, 0), (8, 8)]
    assert result.facts["restarts"] == "1"
    assert timing(dataclasses.replace(
        result, conditions=dataclasses.replace(result.conditions, execution="native")
    )).validity == "noisy"  # fmt: skip


def test_a_page_that_is_closed_for_good_is_exit_code_4_and_never_the_models_fault(
    tmp_path, stub, model
):
    device, url = stub

    async def leave(way, order) -> None:
        for message in said(OUTPUTS, worker=order["worker"])[:4]:
            await (way.send_str if isinstance(message, str) else way.send_bytes)(message)
        await way.close()

    with pytest.raises(DeviceError, match=r"cannot be reached .*page is away.*--resume") as caught:
        asyncio.run(while_running(host(device, model, tmp_path, HASTY), visit(url, leave)))
    assert caught.value.exit_code == 4
    (rows,) = (tmp_path / "out").glob("*/out.bin")
    assert rows.read_bytes() == OUTPUTS[:1].tobytes()


def test_what_was_measured_is_taken_up_with_resume_by_another_page(tmp_path, stub, model):
    device, url = stub

    async def leave(way, order) -> None:
        for message in said(OUTPUTS, worker=order["worker"])[:5]:
            await (way.send_str if isinstance(message, str) else way.send_bytes)(message)
        await way.close()

    async def rest(way, order) -> None:
        for message in said(OUTPUTS, start=2, worker=order["worker"]):
            await (way.send_str if isinstance(message, str) else way.send_bytes)(message)

    with pytest.raises(DeviceError):
        asyncio.run(while_running(host(device, model, tmp_path, HASTY), visit(url, leave)))
    again = host(device, model, tmp_path, resume=True)
    result = asyncio.run(while_running(again, visit(url, rest, who="two")))
    np.testing.assert_array_equal(result.outputs, OUTPUTS)
    assert result.embed_ns.tolist() == [10, 11, 12]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("not json", "the page sent text that is no event"),
        (text(1, "telemetry"), "the page sent an event 'telemetry'"),
        (text(1, "ready", provider="x", load_ns=-1), "sent 'ready' with a wrong field"),
        (b"\x00" * 40, "the page sent a message numbered|binary"),
        (b"\x00" * (MAX_MESSAGE_BYTES + 1), f"the page sent a message above {MAX_MESSAGE_BYTES}"),
    ],
)
def test_a_page_that_misbehaves_is_a_failed_device_and_is_told_how(
    tmp_path, stub, model, message, said
):
    device, url = stub

    async def misbehave(way, order) -> None:
        if isinstance(message, str):
            await way.send_str(message)
            return
        # Numbered as this worker's, so that it is not taken for last words of another.
        await way.send_bytes(message[:4] + order["worker"].to_bytes(4, "little") + message[8:])

    with pytest.raises(DeviceError, match=said) as caught:
        asyncio.run(while_running(host(device, model, tmp_path, HASTY), visit(url, misbehave)))
    assert caught.value.exit_code == 4


def test_a_page_that_nobody_opens_is_waited_for_and_then_named(tmp_path, stub, model, capfd):
    device, _ = stub
    hasty = dataclasses.replace(device, wait_s=1)
    with pytest.raises(DeviceError, match=r"nobody opened its page within 1 s; .*wait_s="):
        host(hasty, model, tmp_path, HASTY)()
    # The invitation is for a person at the terminal: the one place where the token is shown.
    assert browser._host(device).server.token in capfd.readouterr().err


def test_ctrl_c_stops_the_worker_on_the_page(tmp_path, stub, model):
    device, url = stub
    heard = []

    async def some(way, order) -> None:
        for message in said(OUTPUTS, worker=order["worker"])[:5]:
            await (way.send_str if isinstance(message, str) else way.send_bytes)(message)

    def interrupt(event):
        if event["hetero"] == "run":
            raise KeyboardInterrupt

    async def page() -> None:
        heard.extend(await visit(url, some))

    async def both() -> None:
        task = asyncio.ensure_future(page())
        with pytest.raises(Interrupted, match=r"stopped at row \d of 3.*--resume"):
            await asyncio.to_thread(host(device, model, tmp_path, on_event=interrupt))
        browser.close_all()
        await task

    asyncio.run(both())
    assert [x["do"] for x in heard if x["do"] != "have"] == ["welcome", "start", "stop", "closed"]


def test_a_full_disk_of_this_machine_is_one_line(tmp_path, stub, model, monkeypatch):
    device, url = stub

    def full(self, *_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(WebRun, "_append", full)
    from hetero.errors import StorageError

    with pytest.raises(StorageError, match="the disk is full"):
        asyncio.run(while_running(host(device, model, tmp_path), visit(url, all_of_it)))


def test_the_invitation_shows_an_address_and_a_code_that_hold_the_same(stub):
    device, url = stub
    shown = browser.invitation(device, browser._host(device).server)
    assert url.replace("127.0.0.1", "localhost") in shown
    assert "adb reverse tcp:" in shown
    assert shown.count("█") > 50 or shown.count("▄") > 50


def test_a_hidden_page_makes_a_noisy_run():
    said = "the page was hidden for 80 of 100 ms"
    assert judge(None, Conditions(disturbed=said)) == ("noisy", said)
    assert judge(None, Conditions("emulated", disturbed=said))[0] == "emulated"


# -- a real Chromium ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    pytest.importorskip("onnx")
    pytest.importorskip("ai_edge_litert")
    folder = tmp_path_factory.mktemp("files")
    write_onnx(folder / "tiny.onnx")
    write_tflite(folder / "tiny.tflite")
    (folder / "torn.onnx").write_bytes((folder / "tiny.onnx").read_bytes()[:100])
    (folder / "torn.tflite").write_bytes((folder / "tiny.tflite").read_bytes()[:-50])
    return folder


@pytest.fixture(scope="module")
def chromium():
    """A device with a real page behind it, kept for the whole module."""
    pytest.importorskip("aiohttp", reason="needs the extra 'web'")
    return open_device(f"browser:chromium=yes,assets={ASSETS}")


def work(device, path, inputs, folder, plan=PLAN, **more):
    return run(device, path, path.suffix[1:], inputs, folder=folder / "out", plan=plan, **more)


@real
@pytest.mark.browser
@pytest.mark.parametrize("name", ["tiny.onnx", "tiny.tflite"])
def test_rows_of_webassembly_are_the_matrix_product(tmp_path, files, chromium, name):
    result = work(chromium, files / name, PIXELS, tmp_path)
    np.testing.assert_allclose(result.outputs, tiny_answers(PIXELS), rtol=1e-5, atol=1e-2)
    assert result.facts["execution"] == "emulated"
    assert result.facts["cross_origin_isolated"] == "yes"
    assert result.facts["provider"] == "wasm, 1 thread"
    assert timing(result).validity == "emulated"
    assert len(result.latency_ns) >= 3


@real
@pytest.mark.browser
def test_threads_that_are_asked_for_are_there(tmp_path, files):
    pytest.importorskip("aiohttp")
    device = open_device(f"browser:chromium=yes,assets={ASSETS},threads=2")
    for name in ("tiny.onnx", "tiny.tflite"):
        result = work(device, files / name, PIXELS, tmp_path)
        np.testing.assert_allclose(result.outputs, tiny_answers(PIXELS), rtol=1e-5, atol=1e-2)
        assert result.facts["provider"] == "wasm, 2 threads"
        assert result.facts["threads"] == "2"


@real
@pytest.mark.browser
def test_float_inputs_and_fixed_batches_give_their_rows(tmp_path, chromium):
    pytest.importorskip("onnx")
    model = write_onnx(tmp_path / "float.onnx", dtype="float32")
    inputs = np.random.default_rng(2).normal(size=(2, SIZE, SIZE, 3)).astype(np.float32)
    result = work(chromium, model, inputs, tmp_path)
    np.testing.assert_allclose(result.outputs, tiny_answers(inputs), rtol=1e-5, atol=1e-5)
    model, pixels = write_onnx(tmp_path / "four.onnx", batch=4), tiny_pixels(6)
    result = work(chromium, model, pixels, tmp_path)
    np.testing.assert_allclose(result.outputs, tiny_answers(pixels), rtol=1e-5, atol=1e-2)
    assert len(set(result.embed_ns[:4])) == len(set(result.embed_ns[4:])) == 1
    assert result.facts["batch"] == "4"


@real
@pytest.mark.browser
def test_files_that_the_runtime_does_not_take_are_the_models_fault(tmp_path, files, chromium):
    int8 = write_tflite(tmp_path / "int8.tflite", dtype="int8")
    odd = write_onnx(tmp_path / "two.onnx", outputs=2)
    for path, inputs, reason in (
        (files / "torn.onnx", PIXELS, "onnxruntime refuses it"),
        (files / "torn.tflite", PIXELS, "litert refuses it"),
        (int8, PIXELS.astype(np.int8), "INT8 is not supported"),
        (odd, PIXELS, "1 inputs and 2 outputs, not 1"),
        (files / "tiny.onnx", PIXELS[:, :3], r"it takes uint8 \[None, 4, 4, 3\], the inputs are"),
    ):
        with pytest.raises(BundleError, match=reason):
            work(chromium, path, inputs, tmp_path)


def normalised(found: list[dict]) -> list[dict]:
    """Events without what differs from run to run and from machine to machine."""
    kinds = {int: "<int>", float: "<float>", str: "<str>", list: "<list>", dict: "<dict>"}
    keep = {"hetero", "version", "worker", "runtime", "threads", "input_dtype", "input_shape",
            "dim", "batch", "start", "i", "n", "warmup_runs", "rows", "out_bytes", "kind",
            "provider", "disturbed"}  # fmt: skip
    return [
        {
            k: x[k] if k in keep else "<number>" if k == "t_s" else kinds[type(x[k])]
            for k in ["hetero", *sorted(set(x) - {"hetero"})]
        }
        for x in found
    ]


@real
@pytest.mark.browser
@pytest.mark.parametrize("wire", ["onnx", "tflite", "refused", "mismatch", "resumed"])
def test_the_worker_speaks_the_golden_transcript(wire, tmp_path, files, chromium, request):
    """Written anew, for review, with WRITE_GOLDEN=1 in the environment."""
    name = {"tflite": "tiny.tflite", "refused": "torn.onnx"}.get(wire, "tiny.onnx")
    pixels = PIXELS[:, :, :3] if wire == "mismatch" else PIXELS
    if wire in ("refused", "mismatch"):
        with pytest.raises(BundleError):
            work(chromium, files / name, pixels, tmp_path)
    else:
        work(chromium, files / name, pixels, tmp_path)
    (folder,) = (tmp_path / "out").glob("browser-*")
    if wire == "resumed":
        (folder / "out.bin").write_bytes((folder / "out.bin").read_bytes()[:-1])
        (folder / "log.jsonl").write_bytes((folder / "log.jsonl").read_bytes().rsplit(b"\n", 2)[0])
        work(chromium, files / name, pixels, tmp_path, resume=True)
    found = [x for x in events(folder) if x["hetero"] != "beat"]
    lines = "".join(json.dumps(x) + "\n" for x in normalised(found))
    golden = GOLDEN / f"wire_browser_{wire}.jsonl"
    if os.environ.get("WRITE_GOLDEN"):
        golden.write_text(lines)
    assert lines == golden.read_text()


@real
@pytest.mark.browser
def test_the_page_tells_what_the_doctor_asks(chromium):
    found = {name: (status, detail) for name, status, detail, _ in examine(chromium)}
    assert found["onnxruntime"] == ("ok", _web_assets.versions(ASSETS)["onnxruntime-web"])
    assert found["litert"] == ("ok", _web_assets.versions(ASSETS)["@litertjs/core"])
    assert found["page"][0] == "ok"
    assert found["load"] == ("ok", "cannot be read here")


# -- a real Chromium, and faults ------------------------------------------------------------------


@pytest.fixture
def controlled(tmp_path):
    """A device with a fault, and a browser under remote control that has opened its page."""
    pytest.importorskip("aiohttp", reason="needs the extra 'web'")
    import contextlib

    with contextlib.ExitStack() as stack:

        def make(**fault):
            assets = faulty_assets(tmp_path / "faulty", **fault)
            device = open_device(f"browser:port=0,wait_s=120,assets={assets}")
            server = browser._host(device).server
            hand = stack.enter_context(remote(server.address("127.0.0.1")))
            assert server.wait(120)
            return device, server, hand

        yield make
        browser.close_all()


SLOW = {"slow_ms": 150}
MANY = tiny_pixels(12)


def at_row(row, act):
    """Calls `act` once, when the first worker has given this row."""
    done = []

    def look(event):
        if event["hetero"] == "run" and event["i"] == row and not done:
            done.append(act())

    return look


def cut(server):
    """Cut the page's connection as a cable does: without a word."""
    server._loop.call_soon_threadsafe(lambda: server._socket._req.transport.abort())


@real
@pytest.mark.browser
def test_cuts_at_many_moments_lose_nothing_and_double_nothing(tmp_path, model, controlled):
    device, server, _ = controlled(**SLOW)
    seen = []

    def look(event):
        seen.append(event)
        if event["hetero"] in ("hello", "ready", "first", "bench") or event.get("i") in (0, 3, 7):
            cut(server)

    result = work(device, model, MANY, tmp_path, on_event=look)
    np.testing.assert_array_equal(result.outputs, fake_answers(MANY))
    assert [x["i"] for x in seen if x["hetero"] == "run"] == list(range(12))
    assert [x["hetero"] for x in seen].count("hello") == 1
    assert result.facts["restarts"] == "0"


@real
@pytest.mark.browser
def test_a_page_loaded_anew_goes_on_at_the_first_missing_row(tmp_path, model, controlled):
    device, _, hand = controlled(**SLOW)
    seen = []
    reload = at_row(4, lambda: hand.do("Page.reload"))
    result = work(device, model, MANY, tmp_path, on_event=lambda x: (seen.append(x), reload(x)))
    np.testing.assert_array_equal(result.outputs, fake_answers(MANY))
    assert [x["i"] for x in seen if x["hetero"] == "run"] == list(range(12))
    starts = [x["start"] for x in seen if x["hetero"] == "first"]
    assert starts[0] == 0
    assert starts[1] >= 5
    assert result.facts["restarts"] == "1"


@real
@pytest.mark.browser
def test_a_page_that_crashes_and_stays_away_is_exit_code_4(tmp_path, model, controlled):
    # Slow enough for the order to crash to arrive amid the rows on a busy machine.
    device, _, hand = controlled(slow_ms=400)
    plan = dataclasses.replace(PLAN, reconnect_s=1)
    crash = at_row(2, lambda: hand.do("Page.crash"))
    with pytest.raises(DeviceError, match="cannot be reached") as caught:
        work(device, model, MANY, tmp_path, plan, on_event=crash)
    assert caught.value.exit_code == 4


@real
@pytest.mark.browser
def test_a_second_tab_says_why_it_is_refused(model, controlled):
    _, server, hand = controlled()
    url = server.address("127.0.0.1")
    with remote(url) as second:
        wait = (
            "new Promise(go => setInterval(() => document.body?.dataset.state === 'error' "
            "&& go(document.getElementById('text').textContent), 50))"
        )
        assert "Another page is connected" in second.script(wait)
    assert hand.script("document.body.dataset.state") == "waiting"
    assert server.is_here


@real
@pytest.mark.browser
def test_a_hung_runtime_is_ended_and_the_page_lives_on(tmp_path, model, controlled):
    device, server, hand = controlled(at=2, do="hang")
    plan = dataclasses.replace(PLAN, stall_s=2, restarts=0)
    with pytest.raises(DeviceError, match="it lives but did nothing for"):
        work(device, model, PIXELS, tmp_path, dataclasses.replace(plan, beat_s=0.2))
    assert hand.script("document.body.dataset.state") == "waiting"
    assert server.is_here


@real
@pytest.mark.browser
@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        ({"at": "load", "do": "fail"}, BundleError, "refuses it: a made-up failure"),
        ({"at": 0, "do": "fail"}, BundleError, "it loads but does not run: a made-up failure"),
        ({"at": 2, "do": "fail"}, DeviceError, "run-failed: row 1: a made-up failure"),
        ({"at": 2, "do": "memory"}, DeviceError, "out-of-memory: row 1"),
        ({"at": 2, "do": "crash"}, DeviceError, "worker-failed: the browser stopped it"),
    ],
)
def test_a_failing_runtime_is_told_by_where_it_failed(
    tmp_path, model, controlled, fault, error, said
):
    device, _, _ = controlled(**fault)
    with pytest.raises(error, match=said):
        work(device, model, PIXELS, tmp_path)


@real
@pytest.mark.browser
def test_a_page_that_was_hidden_while_measuring_says_so(tmp_path, model, controlled):
    device, _, hand = controlled(**SLOW)
    hide = (
        "Object.defineProperty(document, 'visibilityState', {value: 'hidden'});"
        "document.dispatchEvent(new Event('visibilitychange')); true"
    )
    assert hand.script(hide)
    result = work(device, model, PIXELS, tmp_path)
    assert timing(result).validity == "noisy"
    assert re.match(r"the page was hidden for \d+ of \d+ ms", timing(result).reason)


@real
@pytest.mark.browser
def test_short_runs_are_timed_in_blocks_of_many_steps_of_the_clock(tmp_path, model, controlled):
    device, _, _ = controlled()
    # The length of a block follows from the warm-up; one run alone may happen to be a slow one.
    result = work(device, model, PIXELS, tmp_path, dataclasses.replace(PLAN, warmup_runs=300))
    (bench,) = [x for x in events(result.folder) if x["hetero"] == "bench"]
    assert bench["block"] > 1
    assert len(result.latency_ns) % bench["block"] == 0
    assert len(set(result.latency_ns[: bench["block"]])) == 1


@real
@pytest.mark.browser
def test_over_plain_http_and_a_network_there_is_one_thread_and_the_rows_are_right(tmp_path, files):
    pytest.importorskip("aiohttp", reason="needs the extra 'web'")
    ip = own_address()
    if ip == "localhost":
        pytest.skip("this machine is on no network")
    device = open_device(f"browser:port=0,bind=0.0.0.0,wait_s=120,threads=2,assets={ASSETS}")
    server = browser._host(device).server
    with remote(server.address(ip), f"--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE {ip}"):
        assert server.wait(120)
        result = work(device, files / "tiny.onnx", PIXELS, tmp_path)
        found = {name: status for name, status, _, _ in examine(device)}
    np.testing.assert_allclose(result.outputs, tiny_answers(PIXELS), rtol=1e-5, atol=1e-2)
    assert result.facts["secure_context"] == "no"
    assert result.facts["threads"] == "1"
    assert result.facts["provider"] == "wasm, 1 thread"
    assert found["page"] == "warn"


@real
@pytest.mark.browser
def test_a_killed_chromium_of_our_own_is_started_anew_and_goes_on(tmp_path, model):
    pytest.importorskip("aiohttp")
    assets = faulty_assets(tmp_path / "faulty", slow_ms=300)
    device = open_device(f"browser:chromium=yes,assets={assets}")
    kill = at_row(5, lambda: os.kill(browser._host(device).chromium.pid, signal.SIGKILL))
    result = work(device, model, MANY, tmp_path, on_event=kill)
    np.testing.assert_array_equal(result.outputs, fake_answers(MANY))
    assert result.facts["restarts"] == "1"


#: A host in a process of its own, which is killed. Arguments: address, folder.
HOST = """
import sys
from pathlib import Path
from hetero.devices import browser, open_device
device = open_device(sys.argv[1])
with device.connect(Path(sys.argv[2])):
    print(browser._host(device).chromium.pid, flush=True)
    sys.stdin.read()
"""


@real
@pytest.mark.browser
def test_a_chromium_of_our_own_does_not_outlive_a_host_that_is_killed(tmp_path):
    spec = f"browser:chromium=yes,assets={ASSETS}"
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, spec, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    pid = int(host.stdout.readline())
    os.kill(pid, 0)  # it lives
    host.kill()
    host.communicate()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@real
@pytest.mark.browser
def test_the_token_is_on_no_command_line(chromium, tmp_path):
    with chromium.connect(tmp_path):
        token = browser._host(chromium).server.token
        listed = subprocess.run(["ps", "axww"], capture_output=True, text=True, check=True).stdout
    assert str(CHROMIUM).rpartition("/")[2] in listed
    assert token not in listed


@real
@pytest.mark.browser
def test_the_hash_of_the_worker_is_the_one_of_this_machine(tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    script = (
        f"import('{(ASSETS / '@noble/hashes/sha2.js').as_uri()}').then(({{sha256}}) => {{"
        "for (const n of [0, 1, 55, 56, 63, 64, 65, 1000, 5000000]) {"
        "const h = sha256.create(); const b = new Uint8Array(n).map((_, i) => i * 7);"
        "h.update(b.subarray(0, n >> 1)); h.update(b.subarray(n >> 1));"
        "console.log(n, Buffer.from(h.digest()).toString('hex')); } })"
    )
    done = subprocess.run([node, "-e", script], capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        n, digest = line.split()
        data = (np.arange(int(n)) * 7).astype(np.uint8).tobytes()
        assert digest == hashlib.sha256(data).hexdigest()
    assert len(done.stdout.splitlines()) == 9
